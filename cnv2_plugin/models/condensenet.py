"""The trunk of CondenseNet and CondenseNetV2: stem, dense stages, last normalisation.

The papers' two layers meet in :class:`DenseLayer`; what each of them computes stands in ``layers/reactivation.py``.
"""

from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint

from ..archs import CondenseNetArch
from ..layers import LearnedGroupConv, SparseFeatureReactivation, SpatialGroupConv2d, SqueezeExcite
from ..layers.reactivation import ActLayer, NormLayer
from .base import SparseModelMixin, check_size, init_weights, start_reactivation_at_zero


class DenseLayer(nn.Module):
    """One dense layer (CondenseNetV2, section 3.3): reads all features, adds ``k`` new ones, updates the old ones.

    From the old features ``x`` come the new ones ``f`` and the result ``y``::

        f = SE(conv3x3(act(BN(LGC(x)))))    # LGC, learned group convolution: conv_1
        y = concat(x + SFR(f), f)           # SFR, sparse feature reactivation: sfr

    Without SE (early stages) ``se`` is the identity; without SFR (CondenseNet) ``y = concat(x, f)``.

    Args:
        in_channels: features so far, ``c``.
        growth: new features, ``k``.
        arch: groups, factors and bottleneck.
        act_layer: makes the activation of all three convolutions.
        with_se: adds squeeze-and-excitation on the new features.
        norm_layer: makes a normalisation from a channel count.
        drop_rate: dropout probability in front of the learned group convolution.
        deploy: build the group-convolution form.
    """

    def __init__(
        self,
        in_channels: int,
        growth: int,
        arch: CondenseNetArch,
        act_layer: ActLayer,
        with_se: bool,
        norm_layer: Optional[NormLayer] = None,
        drop_rate: float = 0.0,
        deploy: bool = False,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        shared: dict[str, Any] = dict(act_layer=act_layer, norm_layer=norm_layer, deploy=deploy, **dd)
        width = arch.bottleneck * growth
        self.conv_1 = LearnedGroupConv(
            in_channels, width, arch.groups_1x1, arch.condense_factor, drop_rate=drop_rate, **shared
        )
        self.norm_2 = nn.BatchNorm2d(width, **dd) if norm_layer is None else norm_layer(width)
        self.act_2 = act_layer()
        self.conv_2 = SpatialGroupConv2d(width, growth, 3, padding=1, groups=arch.groups_3x3, bias=False, **dd)
        self.se = SqueezeExcite(growth, max(1, growth // arch.se_reduction), **dd) if with_se else nn.Identity()
        self.sfr = None
        if arch.groups_sfr:
            self.sfr = SparseFeatureReactivation(growth, in_channels, arch.groups_sfr, arch.sparse_factor, **shared)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, c, H, W)`` to ``(N, c + k, H, W)``."""
        new = self.se(self.conv_2(self.act_2(self.norm_2(self.conv_1(x)))))
        if self.sfr is not None:
            x = x + self.sfr(new)
        return torch.cat((x, new), 1)


class DenseStage(nn.Module):
    """An optional 2x2 average pool, then dense layers; ``out_channels`` is ``c`` plus ``k`` a layer.

    Raises:
        ImageSizeError: features of less than 2 x 2 pixels are to be pooled (checked as in ``forward_stem``).
    """

    grad_checkpointing: bool

    def __init__(
        self,
        in_channels: int,
        index: int,
        arch: CondenseNetArch,
        downsample: bool,
        act_layer: Optional[ActLayer] = None,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        growth, block = arch.growth[index], index + 1
        if act_layer is None:
            hswish = arch.hswish_from is not None and block >= arch.hswish_from
            act_layer = nn.Hardswish if hswish else partial(nn.ReLU, inplace=True)
        with_se = arch.se_from is not None and block >= arch.se_from
        self.grad_checkpointing = False
        self.downsample = downsample
        self.pool = nn.AvgPool2d(2, 2) if downsample else nn.Identity()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + i * growth, growth, arch, act_layer, with_se, **layer_options)
            for i in range(arch.layers[index])
        )
        self.out_channels = in_channels + arch.layers[index] * growth
        self.smallest_input = arch.smallest_input(arch.num_stages)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, c, H, W)`` to ``(N, out_channels, H', W')``."""
        if self.downsample and not torch.jit.is_scripting():
            check_size(x, 2, self.smallest_input, 'the features in front of a stage that halves them are')
        x = self.pool(x)
        for layer in self.layers:
            if self.grad_checkpointing and x.requires_grad and not torch.jit.is_scripting():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x


class CondenseNetTrunk(SparseModelMixin, nn.Module):
    """Stem, stages and last normalisation of CondenseNet (no SFR) and CondenseNetV2.

    Dense features are pre-activation: what leaves a stage is normalised by each reader. ``norm`` (BN -> ReLU) follows
    the last stage only.

    Attributes:
        final_attribute: name of the part after the last stage.
        stem: 3x3 convolution to ``2 * k_1`` channels, stride ``arch.stem_stride``.
        stages: dense stages; every stage but the first begins with a 2x2 average pool.
        norm: batch normalisation and ReLU of the last stage's features.
        stage_channels: channels that leave each stage.
        stage_strides: stride of each stage's features relative to the input.
        smallest_input: height and width that leave one pixel after the last pool.

    Args:
        arch: shape.
        in_chans: input channels.
        lgc_drop_rate: dropout probability inside the learned group convolutions.
        norm_layer: makes a normalisation from a channel count; batch normalisation by default.
        act_layer: makes every activation of the trunk; by default the arch's own (hard-swish from
            ``arch.hswish_from``, ReLU before it and after the last stage).
        deploy: build the group-convolution form.
        zero_init_sfr: reactivation starts at 0, so that it changes no feature before the first step.
    """

    final_attribute = 'norm'

    def __init__(
        self,
        arch: CondenseNetArch,
        in_chans: int = 3,
        lgc_drop_rate: float = 0.0,
        norm_layer: Optional[NormLayer] = None,
        act_layer: Optional[ActLayer] = None,
        deploy: bool = False,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
        zero_init_sfr: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        channels = 2 * arch.growth[0]
        self.arch = arch
        self.deploy = deploy
        self.stem = nn.Conv2d(in_chans, channels, 3, arch.stem_stride, padding=1, bias=False, **dd)
        stages = []
        self.stage_channels: list[int] = []
        self.stage_strides: list[int] = []
        for i in range(len(arch.layers)):
            stage = DenseStage(
                channels, i, arch, downsample=i > 0, act_layer=act_layer,
                norm_layer=norm_layer, drop_rate=lgc_drop_rate, deploy=deploy, **dd,
            )  # fmt: skip
            channels = stage.out_channels
            stages.append(stage)
            self.stage_channels.append(channels)
            self.stage_strides.append(arch.stem_stride * 2**i)
        self.stages = nn.Sequential(*stages)
        norm = nn.BatchNorm2d(channels, **dd) if norm_layer is None else norm_layer(channels)
        self.norm = nn.Sequential(norm, nn.ReLU(inplace=True) if act_layer is None else act_layer())
        self.num_features = channels
        self.smallest_input = arch.smallest_input(arch.num_stages)
        self.apply(init_weights)
        if zero_init_sfr:
            start_reactivation_at_zero(self)

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalise and activate the last stage's features ``(N, num_features, H, W)``."""
        return self.norm(x)

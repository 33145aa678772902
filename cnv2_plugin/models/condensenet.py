"""The trunk of CondenseNet and CondenseNetV2: stem, dense stages, last normalisation.

The papers' two layers meet in :class:`DenseLayer`; what each of them computes stands in ``layers/reactivation.py``.
"""

from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.types import Device

from ..archs import CondenseNetArch
from ..layers import LearnedGroupConv, SparseFeatureReactivation, SpatialGroupConv2d, SqueezeExcite
from ..layers.reactivation import ActLayer, NormLayer
from .base import LayerStage, LayerTrunk, check_size


class DenseLayer(nn.Module):
    """One dense layer (CondenseNetV2, section 3.3): reads all features, adds ``k`` new ones, updates the old ones.

    From the old features ``x`` come the new ones ``f`` and the result ``y``::

        f = SE(conv3x3(act(BN(LGC(x)))))    # LGC, learned group convolution: conv_1
        y = concat(x + SFR(f), f)           # SFR, sparse feature reactivation: sfr

    Without SE (early stages) ``se`` is the identity; without SFR (CondenseNet) ``y = concat(x, f)``. The features so
    far, ``c``, are ``in_channels``, and ``k`` is ``growth``; dropout stands in front of the learned group convolution.
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
        conv = nn.Conv2d if deploy else SpatialGroupConv2d
        self.conv_2 = conv(width, growth, 3, padding=1, groups=arch.groups_3x3, bias=False, **dd)
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


class DenseStage(LayerStage):
    """An optional 2x2 average pool, then dense layers; ``out_channels`` is ``c`` plus ``k`` a layer.

    Raises:
        ImageSizeError: features of less than 2 x 2 pixels are to be pooled (checked as in ``forward_stem``).
    """

    def __init__(
        self,
        in_channels: int,
        index: int,
        arch: CondenseNetArch,
        act_layer: Optional[ActLayer] = None,
        **layer_options: Any,
    ) -> None:
        growth, count, block = arch.growth[index], arch.layers[index], index + 1
        if act_layer is None:
            hswish = arch.hswish_from is not None and block >= arch.hswish_from
            act_layer = nn.Hardswish if hswish else partial(nn.ReLU, inplace=True)
        with_se = arch.se_from is not None and block >= arch.se_from
        layers = (
            DenseLayer(in_channels + i * growth, growth, arch, act_layer, with_se, **layer_options)
            for i in range(count)
        )
        super().__init__(layers, in_channels + count * growth)
        self.downsample = index > 0
        self.pool = nn.AvgPool2d(2, 2) if self.downsample else nn.Identity()
        self.smallest_input = arch.smallest_input(arch.num_stages)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, c, H, W)`` to ``(N, out_channels, H', W')``."""
        if self.downsample and not torch.jit.is_scripting():
            check_size(x, 2, self.smallest_input, 'the features in front of a stage that halves them are')
        return self.run_layers(self.pool(x))


class CondenseNetTrunk(LayerTrunk):
    """Stem, stages and last normalisation of CondenseNet (no SFR) and CondenseNetV2.

    Dense features are pre-activation: what leaves a stage is normalised by each reader. ``norm`` (BN -> ReLU) follows
    the last stage only.

    Attributes:
        stem: 3x3 convolution to ``2 * k_1`` channels, stride ``arch.stem_stride``.
        stages: dense stages; every stage but the first begins with a 2x2 average pool.
        norm: batch normalisation and ReLU of the last stage's features.

    Args:
        arch: shape.
        in_chans: input channels.
        lgc_drop_rate: dropout probability inside the learned group convolutions.
        output_stride: 32, the only one; see the error.
        **options: see :class:`LayerTrunk`; activations are the arch's own by default (hard-swish from
            ``arch.hswish_from``, ReLU before it and after the last stage).

    Raises:
        ValueError: another ``output_stride``.
    """

    final_attribute = 'norm'
    norm: nn.Module
    stage_class = DenseStage
    arch: CondenseNetArch

    def __init__(
        self,
        arch: CondenseNetArch,
        in_chans: int = 3,
        lgc_drop_rate: float = 0.0,
        output_stride: int = 32,
        **options: Any,
    ) -> None:
        if output_stride != 32:
            raise ValueError(
                f'output_stride is {output_stride!r}; CondenseNets pool between their stages and take 32 only, so use '
                f'a ShuffleNet of this package (8, 16 or 32) or features of an earlier stage (out_indices).'
            )
        super().__init__(arch, in_chans, layer_options=dict(drop_rate=lgc_drop_rate), **options)

    def make_stem(self, in_chans: int, device: Device, dtype: Optional[torch.dtype], **_: Any) -> tuple:
        channels, stride = 2 * self.arch.growth[0], self.arch.stem_stride
        conv = nn.Conv2d(in_chans, channels, 3, stride, padding=1, bias=False, device=device, dtype=dtype)
        return conv, channels, stride

    def make_final(
        self, channels: int, norm_layer: Optional[NormLayer], act_layer: Optional[ActLayer], **dd: Any
    ) -> tuple[nn.Module, int]:
        norm = nn.BatchNorm2d(channels, **dd) if norm_layer is None else norm_layer(channels)
        return nn.Sequential(norm, nn.ReLU(inplace=True) if act_layer is None else act_layer()), channels

    def forward_final(self, x: Tensor) -> Tensor:
        """Normalise and activate the last stage's features ``(N, num_features, H, W)``."""
        return self.norm(x)

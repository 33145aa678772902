"""The trunk of ShuffleNetV2 and SFR-ShuffleNetV2: stem, stages of split-and-shuffle units, last 1x1 convolution."""

from collections import OrderedDict
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.types import Device

from ..archs import ShuffleNetArch
from ..layers import SparseFeatureReactivation, largest_divisor
from ..layers.permute import ChannelShuffle
from ..layers.reactivation import ActLayer, NormLayer
from .base import LayerStage, LayerTrunk


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    act: bool = True,
    norm_layer: Optional[NormLayer] = None,
    act_layer: Optional[ActLayer] = None,
    device: Device = None,
    dtype: Optional[torch.dtype] = None,
) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, normalisation, and an activation (ReLU) where ``act``."""
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2,
        groups=groups, bias=False, device=device, dtype=dtype,
    )  # fmt: skip
    norm = nn.BatchNorm2d(out_channels, device=device, dtype=dtype) if norm_layer is None else norm_layer(out_channels)
    parts = OrderedDict(conv=conv, norm=norm)
    if act:
        parts['act'] = nn.ReLU(inplace=True) if act_layer is None else act_layer()
    return nn.Sequential(parts)


class ShuffleUnit(nn.Module):
    """One unit of ShuffleNetV2 (section 3.2), with SFR on the half that it otherwise leaves untouched.

    At stride 1 the right half goes through ``branch2``, whose output ``f`` also reactivates the left half:
    ``left + SFR(f)`` (CondenseNetV2, section 3.4), and channels out are those in. At stride 2 both branches read
    everything. Channels out are an even number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        arch: ShuffleNetArch,
        norm_layer: Optional[NormLayer] = None,
        act_layer: Optional[ActLayer] = None,
        deploy: bool = False,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        block = partial(conv_norm, norm_layer=norm_layer, act_layer=act_layer, device=device, dtype=dtype)
        width = out_channels // 2
        self.width = width
        self.branch1 = None
        if stride > 1:
            self.branch1 = nn.Sequential(
                block(in_channels, in_channels, 3, stride, groups=in_channels, act=False),
                block(in_channels, width, 1),
            )
        self.branch2 = nn.Sequential(
            block(in_channels if stride > 1 else width, width, 1),
            block(width, width, 3, stride, groups=width, act=False),
            block(width, width, 1),
        )
        self.sfr = None
        if arch.with_sfr and stride == 1:
            self.sfr = SparseFeatureReactivation(
                width, width, largest_divisor(width, arch.max_groups), arch.sparse_factor,
                act_layer=act_layer, norm_layer=norm_layer, deploy=deploy, **dd,
            )  # fmt: skip
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        if self.branch1 is not None:
            left, new = self.branch1(x), self.branch2(x)
        else:
            left, new = x[:, : self.width], self.branch2(x[:, self.width :])
        if self.sfr is not None:
            left = left + self.sfr(new)
        return self.shuffle(torch.cat((left, new), 1))


class ShuffleStage(LayerStage):
    """Units of one width, the first of which halves height and width."""

    def __init__(self, in_channels: int, index: int, arch: ShuffleNetArch, **unit_options: Any) -> None:
        width = arch.channels[index]
        units = (
            ShuffleUnit(width if i else in_channels, width, 1 if i else 2, arch, **unit_options)
            for i in range(arch.repeats[index])
        )
        super().__init__(units, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / 2, W / 2)``."""
        return self.run_layers(x)


class ShuffleNetTrunk(LayerTrunk):
    """Stem, stages and last 1x1 convolution of ShuffleNetV2 (table 5) and SFR-ShuffleNetV2; see :class:`LayerTrunk`.

    Attributes:
        stem: 3x3 convolution of stride 2, normalisation, ReLU, 3x3 max pool of stride 2.
        stages: stages of units, each halving the size.
        final: 1x1 convolution to ``arch.final_width``, normalisation and ReLU of the last stage's features.

    Args:
        output_stride: largest stride of the features, 8, 16 or 32; beyond it convolutions are dilated.
        **options: see :class:`LayerTrunk`.

    Raises:
        ValueError: ``output_stride`` is none of these.
    """

    final_attribute = 'final'
    final: nn.Module
    stage_class = ShuffleStage
    arch: ShuffleNetArch

    def __init__(self, arch: ShuffleNetArch, output_stride: int = 32, **options: Any) -> None:
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride is {output_stride!r}; it takes 8, 16 or 32.')
        super().__init__(arch, **options)
        if output_stride < 32:
            self._dilate(output_stride)

    def _dilate(self, output_stride: int) -> None:
        for i, stage in enumerate(self.stages):
            dilation = max(1, self.stage_strides[i] // output_stride)
            self.stage_strides[i] //= dilation
            for j, unit in enumerate(stage.get_submodule('layers').children() if dilation > 1 else ()):
                for conv in (m for m in unit.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
                    reach = dilation if j else dilation // 2
                    conv.stride, conv.padding, conv.dilation = (1, 1), (reach, reach), (reach, reach)

    def make_stem(self, in_chans: int, **options: Any) -> tuple[nn.Module, int, int]:
        stem = conv_norm(in_chans, self.arch.stem_width, 3, 2, **options)
        stem.add_module('pool', nn.MaxPool2d(3, 2, padding=1))
        return stem, self.arch.stem_width, 8

    def make_final(self, channels: int, **options: Any) -> tuple[nn.Module, int]:
        return conv_norm(channels, self.arch.final_width, 1, **options), self.arch.final_width

    def forward_final(self, x: Tensor) -> Tensor:
        """Map the last stage's features to ``(N, num_features, H, W)``."""
        return self.final(x)

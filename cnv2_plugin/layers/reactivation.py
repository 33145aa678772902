"""The two pre-activation layers of the papers: learned group convolution (LGC), sparse feature reactivation (SFR).

Both are a 1x1 convolution whose weight ``W`` is multiplied by a mask ``M`` of zeros and ones, ``(O, I, 1, 1)``::

    y = conv1x1(act(BN(x)), W * M)

LGC chooses which old features a new layer reads: all outputs of a group ``o mod G`` have the same inputs, so
``M[o, i]`` depends on ``(o mod G, i)``. SFR chooses which old features a new layer updates: all inputs of a group
``i mod G`` have the same outputs, so ``M[o, i]`` depends on ``(o, i mod G)``. How pruning empties ``M`` stands in
:meth:`.Grouping.next_mask`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Optional

import torch
from torch import Tensor, nn
from torch.types import Device

from .convolutions import convolutions_last
from .grouping import GroupedSide
from .known import check_norm, gather_norm, peculiarity, refuse, treats_channels_alike
from .sparse import GroupSparseConv2d

NormLayer = Callable[[int], nn.Module]
ActLayer = Callable[[], nn.Module]


class PreActivation(GroupSparseConv2d):
    """BN -> activation -> dropout in front of the masked convolution; the views say which side is grouped.

    ``gather`` and ``scatter``, made by the base, are identities until the layer is condensed.

    Args:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``; divides the channels of the grouped side.
        factor: condense factor ``C`` or sparse factor ``S``; pruning takes one stage less.
        act_layer: makes the activation; ReLU by default.
        norm_layer: makes the normalisation from a channel count; batch normalisation by default.
        drop_rate: dropout probability in front of the convolution.
        eps: ``eps`` of the default normalisation.
        momentum: ``momentum`` of the default normalisation.
        deploy: build the group-convolution form directly.

    Raises:
        ValueError: ``groups`` does not divide the channels of the grouped side, or an argument is out of range.
    """

    _side: ClassVar[GroupedSide]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 8,
        factor: int = 8,
        act_layer: Optional[ActLayer] = None,
        norm_layer: Optional[NormLayer] = None,
        drop_rate: float = 0.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
        deploy: bool = False,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, groups, factor, self._side, deploy=deploy, device=device, dtype=dtype
        )
        if norm_layer is None:
            norm_layer = partial(nn.BatchNorm2d, eps=eps, momentum=momentum, device=device, dtype=dtype)
        self.norm = norm_layer(self.conv.in_channels)
        self.act = nn.ReLU(inplace=True) if act_layer is None else act_layer()
        self.drop = nn.Dropout(drop_rate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts, the convolution last, which reads all others."""
        return convolutions_last(super().named_children())


class LearnedGroupConv(PreActivation):
    """Learned group convolution: BN -> activation -> 1x1 convolution that learns which inputs each group reads.

    Output ``o`` is in group ``o mod groups``; after the last stage each group reads ``ceil(I / factor)`` inputs
    (CondenseNet, section 3). The deployed form gathers those inputs, normalises and activates the gathered
    channels, applies a group convolution and shuffles the outputs back to the interleaved order. Arguments are those of
    :class:`PreActivation`.

    Example:
        >>> layer = LearnedGroupConv(16, 32, groups=4, factor=4)
        >>> layer.prune_to(layer.num_stages)
        >>> layer.switch_to_deploy()
        >>> layer.conv
        Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1), groups=4, bias=False)
    """

    _side = 'outputs'

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)``: ``conv1x1(act(BN(x)), W * M)``."""
        return self.scatter(self._convolve(self.drop(self.act(self.norm(self.gather(x))))))

    def _condense_norm(self, kept: Tensor) -> None:
        self.norm = gather_norm(self.norm, kept)

    def check_known(self, name: str = '') -> None:
        """Refuse also what stands behind the gather of the condensed form and does not treat channels alike.

        Raises:
            UnknownModuleError: condensing could not be proven exact.
        """
        super().check_known(name)
        check_norm(self.norm, f'{name}.norm'.strip('.'))
        index = self.grouping.kept_index(self.mask)
        for part, module in (('act', self.act), ('drop', self.drop)):
            if not treats_channels_alike(module, index, self.in_channels):
                wrong = next(filter(None, map(peculiarity, module.modules())), 'does not treat every channel alike')
                raise refuse(f'{name}.{part}'.strip('.'), module, wrong)


class SparseFeatureReactivation(PreActivation):
    """Sparse feature reactivation: BN -> activation -> 1x1 convolution that learns which features to update.

    Input ``i`` is in group ``i mod groups``; after the last stage each group updates ``ceil(O / factor)`` outputs,
    the others get 0 (CondenseNetV2, section 3.2). Add the result to the old features. The deployed form brings the
    inputs into group order, applies a group convolution, and sums the rows that belong to one feature. Arguments are
    those of :class:`PreActivation`.

    Example:
        >>> layer = SparseFeatureReactivation(16, 100, groups=4, factor=8)
        >>> layer(torch.randn(1, 16, 7, 7)).shape
        torch.Size([1, 100, 7, 7])
    """

    _side = 'inputs'

    def forward(self, x: Tensor) -> Tensor:
        """Map new features ``(N, I, H, W)`` to the update ``(N, O, H, W)``: ``conv1x1(act(BN(x)), W * M)``."""
        return self.scatter(self._convolve(self.gather(self.drop(self.act(self.norm(x))))))

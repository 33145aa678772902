"""The masked and the packed 1x1 convolution: as functions, and as the convolution inside a layer that trains.

Channels keep their original order, so nothing around them changes. TorchScript compiles the functions too.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Optional

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .known import has_hooks

fx.wrap('packed_conv')


def convolutions_last(children: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Order named children so that none follows a convolution.

    Fusers (mmcv's) take a normalisation that follows a convolution for one that reads it.
    """
    return iter(sorted(children, key=lambda child: isinstance(child[1], nn.Conv2d)))


class SparseConv2d(nn.Conv2d):
    """The convolution inside a masked or packed layer, which tells it what survives whenever it calls it.

    Whatever attaches to a convolution (hooks, ``torch.nn.utils.prune``, weight normalisation, adapters) takes part.
    """

    def __init__(
        self, in_channels: int, out_channels: int, unit_groups: int, num_units: int, grouped_side: str, packed: bool,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, 1, groups=unit_groups if packed else 1, **options)
        self.unit_groups, self.num_units, self.grouped_side, self.packed = unit_groups, num_units, grouped_side, packed

    # The mask comes with the image; TorchScript reads no reason behind the code.
    def forward(self, x: Tensor, mask: Tensor, kept: Tensor) -> Tensor:  # type: ignore[override]
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)`` by the mask of a masked layer, or the kept units of a packed one."""
        stride = (self.stride[0], self.stride[1])
        if self.packed:
            return packed_conv(
                x, self.weight, self.bias, stride, kept, self.unit_groups, self.num_units, self.grouped_side
            )
        if not torch.jit.is_scripting() and isinstance(self.weight, Tensor) and mask.shape != self.weight.shape:
            raise ValueError(  # while torch.fx traces, the weight is no tensor
                f'the weight of a masked layer has the shape {tuple(self.weight.shape)} but its mask '
                f'{tuple(mask.shape)}; something else cut it: prune masked layers by prune_to() or a StagedSparsifier.'
            )
        return F.conv2d(x, masked_weight(self.weight, mask, self.unit_groups, self.grouped_side), self.bias, stride)


def check_knows_masks(conv: nn.Module, name: Callable[[], str]) -> None:
    """Raise where something took the place of the convolution, or asks for more of it, that knows no mask."""
    if type(conv) is not SparseConv2d and not any(isinstance(part, SparseConv2d) for part in conv.modules()):
        raise TypeError(
            f'{name()}.conv is a {type(conv).__module__}.{type(conv).__name__}, which does not know '
            f'which weights are pruned; finish pruning and call switch_to_deploy() before replacing it.'
        )
    if getattr(conv, 'qconfig', None) is not None:
        raise TypeError(
            f'{name()}.conv has a qconfig, but eager quantisation-aware training does not see masks; '
            f'finish pruning, condense the model and then prepare it, or set qconfig = None on this layer.'
        )


def replacement_conv(conv: nn.Conv2d, weight: Tensor, old: nn.Conv2d) -> nn.Conv2d:
    """Give a convolution a weight, and the bias (the same parameter) and flags of the old one that it replaces."""
    with torch.no_grad():
        conv.weight.copy_(weight)
    conv.weight.requires_grad_(old.weight.requires_grad)
    conv.bias = old.bias
    return conv.train(old.training)


def conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    """The options of a convolution that another one in its place takes over."""
    return dict(
        stride=conv.stride, dilation=conv.dilation, bias=conv.bias is not None,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip


def masked_weight(weight: Tensor, mask: Tensor, groups: int, grouped_side: str) -> Tensor:
    """Multiply a weight by its mask, both ``(O, I, 1, 1)``; gradients reach surviving weights only.

    All members of a unit share one bit, so ``1 / G`` of the bits of a row or column are read.
    """
    if grouped_side == 'inputs':
        alive = mask[:, None, :groups].flatten(2).to(weight.dtype)
        return (weight.reshape(weight.size(0), -1, groups) * alive).reshape(weight.shape)
    alive = mask[:groups].flatten().to(weight.dtype)
    return (weight.reshape(-1, alive.numel()) * alive).reshape(weight.shape)


def packed_conv(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], stride: tuple[int, int], kept: Tensor, groups: int,
    num_units: int, grouped_side: str,
) -> Tensor:  # fmt: skip
    """Convolve ``(N, I, H, W)`` with the surviving weights, from and to the original order of channels.

    Where a group is so narrow that moving its channels costs more than it saves, the surviving weights are put into a
    dense weight for the time of the convolution. See :meth:`.Grouping.pack` for the weight and the kept units.
    """
    dense = not prefer_group_product(weight.size(1), grouped_side, is_channels_last(x))
    if not torch.jit.is_scripting():
        dense = dense or torch.onnx.is_in_onnx_export()  # TorchScript's exporter loses sums of index_add
    if dense:
        return F.conv2d(x, unpacked_weight(weight, kept, groups, num_units, grouped_side), bias, stride)
    if stride[0] > 1 or stride[1] > 1:
        x = x[:, :, :: stride[0], :: stride[1]]
    weight = weight.reshape(groups, -1, weight.size(1))
    if grouped_side == 'inputs':
        return _update_selected(x, weight, kept, num_units)
    y = _read_selected(x, weight, kept)
    return y if bias is None else y + bias[:, None, None]


def unpacked_weight(weight: Tensor, kept: Tensor, groups: int, num_units: int, grouped_side: str) -> Tensor:
    """Put packed weights into a dense weight ``(O, I, 1, 1)`` whose other entries are 0; see :func:`packed_conv`."""
    rows = weight.reshape(groups, -1, weight.size(1))
    if grouped_side == 'outputs':
        rows = rows.transpose(1, 2)
    index = kept.view(groups, -1, 1).expand(-1, -1, rows.size(2))
    units = rows.new_zeros([groups, num_units, rows.size(2)]).scatter(1, index, rows)
    if grouped_side == 'outputs':
        return units.permute(2, 0, 1).flatten(0, 1)[..., None, None]
    return units.permute(1, 2, 0).flatten(1)[..., None, None]


def prefer_group_product(columns: int, grouped_side: str, channels_last: bool) -> bool:
    """Whether a product per group, of so many inputs, is faster than a dense convolution (measured on CPUs)."""
    if not channels_last:
        return columns >= 4
    return columns >= (32 if grouped_side == 'outputs' else 16)


_GLOBAL_HOOKS = [f'_global_{kind}_hooks' for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')]


def group_product(x: Tensor, conv: nn.Module, training: bool) -> Optional[Tensor]:
    """A condensed layer's 1x1 group convolution as one product a group, or None where the convolution must be called.

    PyTorch convolves group by group on a CPU, which takes longer the narrower the groups are. The product stands for
    that in evaluation mode, for contiguous features, while nothing traces, compiles or exports, and where nothing is
    attached to the convolution that a call of it would run.
    """
    if (
        training
        or type(x) is not Tensor
        or type(conv) is not nn.Conv2d
        or x.device.type != 'cpu'
        or not x.is_contiguous()
        or conv.groups == 1
        or not conv.kernel_size == conv.stride == (1, 1)
        or conv.padding != (0, 0)
        or 'forward' in conv.__dict__
        or has_hooks(conv)
        or any(getattr(nn.modules.module, hooks) for hooks in _GLOBAL_HOOKS)
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
    ):
        return None
    n, h, w = x.size(0), x.size(2), x.size(3)
    weight = conv.weight.reshape(conv.groups, -1, conv.weight.size(1))
    y = (weight @ x.view(n, conv.groups, weight.size(2), h * w)).view(n, conv.out_channels, h, w)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def is_channels_last(x: Tensor) -> bool:
    """Whether features ``(N, C, H, W)`` are stored position by position."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _read_selected(x: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """Learned group convolution of ``(N, I, H, W)``: every group reads its kept inputs, ``(G * K,)``.

    The weight is ``(G, O / G, K)``; output ``o`` is member ``o // G`` of group ``o mod G``.
    """
    n, h, w = x.size(0), x.size(2), x.size(3)
    groups, members, columns = weight.shape
    if is_channels_last(x):
        rows = x.permute(0, 2, 3, 1).reshape(n * h * w, -1).index_select(1, kept)
        y = torch.bmm(rows.reshape(-1, groups, columns).transpose(0, 1), weight.transpose(1, 2))
        return y.permute(1, 2, 0).reshape(n, h, w, members * groups).permute(0, 3, 1, 2)
    x = x.index_select(1, kept).reshape(n, groups, columns, h * w)
    return torch.matmul(weight, x).transpose(1, 2).reshape(n, members * groups, h, w)


def _update_selected(x: Tensor, weight: Tensor, kept: Tensor, out_channels: int) -> Tensor:
    """Sparse feature reactivation of ``(N, I, H, W)``: every group updates its kept outputs, ``(G * K,)``.

    The weight is ``(G, K, I / G)``; input ``i`` is in group ``i mod G``.
    """
    n, h, w = x.size(0), x.size(2), x.size(3)
    groups, rows, columns = weight.shape
    if is_channels_last(x):
        x = x.permute(0, 2, 3, 1).reshape(n * h * w, columns, groups).permute(2, 0, 1)
        y = torch.bmm(x, weight.transpose(1, 2)).transpose(0, 1).reshape(n * h * w, groups * rows)
        y = y.new_zeros([n * h * w, out_channels]).index_add_(1, kept, y)
        return y.reshape(n, h, w, out_channels).permute(0, 3, 1, 2)
    x = x.reshape(n, columns, groups, h * w).transpose(1, 2)
    y = torch.matmul(weight, x).reshape(n, groups * rows, h, w)
    return y.new_zeros([n, out_channels, h, w]).index_add_(1, kept, y)

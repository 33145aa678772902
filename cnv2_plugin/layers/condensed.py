"""The condensed form of a group-sparse 1x1 convolution: gather -> standard group convolution -> scatter.

Over outputs (learned group convolution) the gather selects the inputs of every group and the scatter shuffles the
outputs back; over inputs (sparse feature reactivation) the gather brings the inputs into the order of the groups and
the scatter sums the rows that belong to one output.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .norm import is_batch_norm
from .permute import ChannelGather, ChannelScatterSum, ChannelShuffle


def permutations(
    kept: Tensor, in_channels: int, out_channels: int, groups: int, grouped_side: str
) -> tuple[nn.Module, ...]:
    """What stands before and behind the group convolution.

    Args:
        kept: units of each group, ``(G * K,)``.
        in_channels: input channels ``I`` of the layer.
        out_channels: output channels ``O`` of the layer.
        groups: number of groups ``G``.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.
    """
    if grouped_side == 'outputs':
        return ChannelGather(kept), ChannelShuffle(groups)
    return ChannelShuffle(in_channels // groups), ChannelScatterSum(kept, out_channels)


def group_conv(
    kept: int, in_channels: int, out_channels: int, groups: int, grouped_side: str, **conv_options: Any
) -> nn.Conv2d:
    """A 1x1 group convolution over the units that are kept.

    Args:
        kept: units kept in all groups together, ``G * K``.
        in_channels: input channels ``I`` of the layer.
        out_channels: output channels ``O`` of the layer.
        groups: number of groups ``G``.
        grouped_side: which side is grouped.
        **conv_options: ``stride``, ``dilation``, ``bias``, ``device`` and ``dtype`` of the convolution.
    """
    channels = (kept, out_channels) if grouped_side == 'outputs' else (in_channels, kept)
    return nn.Conv2d(*channels, 1, groups=groups, **conv_options)


def conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    """What a convolution that takes the place of another has in common with it."""
    return dict(
        stride=conv.stride, dilation=conv.dilation, bias=conv.bias is not None,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip


def replacement_conv(conv: nn.Conv2d, weight: Tensor, old: nn.Conv2d) -> nn.Conv2d:
    """A convolution with this weight, and the bias (the same parameter) and flags of the one it replaces.

    Args:
        conv: the new convolution.
        weight: its weight, ``(O, I / G, 1, 1)``.
        old: the one that it replaces.
    """
    with torch.no_grad():
        conv.weight.copy_(weight)
    conv.weight.requires_grad_(old.weight.requires_grad)
    conv.bias = old.bias
    return conv.train(old.training)


def group_order(bias: Tensor, groups: int) -> Tensor:
    """A bias ``(O,)`` of interleaved outputs (output ``o`` in group ``o mod G``), brought into the order of groups."""
    return bias.unflatten(0, (-1, groups)).t().flatten()


def gather_norm(norm: nn.Module, index: Tensor) -> nn.BatchNorm2d:
    """Batch normalisation of the gathered channels; any batch normalisation (SyncBN too) becomes a plain one.

    Args:
        norm: normalisation of all channels.
        index: the gathered channels, ``(K,)``.

    Raises:
        TypeError: ``norm`` is no batch normalisation, or more than that.
    """
    if not is_batch_norm(norm):
        raise TypeError(
            f'Only batch normalisation can be condensed, but the layer is normalised by {type(norm).__name__}; build '
            f'the model with norm_layer=torch.nn.BatchNorm2d, and give an activation as act_layer.'
        )
    reference = norm.weight if norm.affine else norm.running_mean
    gathered = nn.BatchNorm2d(
        index.numel(), norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        device=index.device, dtype=None if reference is None else reference.dtype,
    )  # fmt: skip
    for name, target in [*gathered.named_parameters(), *gathered.named_buffers()]:
        source = getattr(norm, name)
        with torch.no_grad():
            target.copy_(source[index] if source.ndim else source)
        target.requires_grad_(source.requires_grad)
    return gathered

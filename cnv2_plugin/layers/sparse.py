"""The masked group-sparse 1x1 convolution that LGC and SFR are two views of."""

from typing import Final, Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .memory_format import trains_on_cpu
from .packed import is_channels_last, pays, read_selected, update_selected
from .permute import ChannelGather, ChannelScatterSum


def kept_units(num_units: int, factor: int, stage: int) -> int:
    """Units that stay alive in each group once ``stage`` is done.

    ``n - floor(stage * (n - ceil(n / factor)) / (factor - 1))``; where ``factor`` divides ``n`` this is
    ``n / factor`` fewer units a stage (CondenseNet, section 3.2).

    Args:
        num_units: units per group, ``n``.
        factor: condense factor ``C`` or sparse factor ``S``; the last stage is ``factor - 1``.
        stage: number of pruning stages done.
    """
    if factor == 1:
        return num_units
    prunable = num_units - -(-num_units // factor)
    return num_units - min(stage, factor - 1) * prunable // (factor - 1)


class UnfinishedPruningError(RuntimeError):
    """A layer is asked for its group-convolution form before its last pruning stage."""


class GroupSparseConv2d(nn.Module):
    """A 1x1 convolution whose weight becomes group-sparse by staged pruning.

    One prunable unit is all weights between one group and one channel of the other side. With
    ``over='outputs'`` output ``o`` is in group ``o mod G`` and each group keeps ``ceil(I / factor)`` inputs
    (learned group convolution); with ``over='inputs'`` input ``i`` is in group ``i mod G`` and each group
    keeps ``ceil(O / factor)`` outputs (sparse feature reactivation). Pruning empties ``mask`` and never
    touches the weights. Once pruning is finished, ``switch_to_deploy`` turns the layer into a standard group
    convolution between two channel permutations, in place and exactly; ``switch_to_packed`` keeps it trainable with
    the surviving weights only. A plain ``nn.Conv2d`` of the same shape has a state dict that this layer loads too.

    Args:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``; divides the grouped side.
        factor: condense or sparse factor; pruning takes ``factor - 1`` stages.
        over: which side is grouped, ``'outputs'`` or ``'inputs'``.
        bias: adds a bias (``over='outputs'`` only: a pruned output would lose its bias otherwise).
        stride: stride of the convolution.
        dilation: kept for what reads it; a 1x1 kernel has nothing to dilate.
        deploy: build the group-convolution form directly, with the state-dict keys of ``switch_to_deploy``.

    Attributes:
        mask: bool buffer of the weight's shape (training form only).
        stage: int64 scalar buffer, pruning stages done (training form only).
        num_stages: stages until pruning is finished.
        packed: the training form holds the surviving weights only, see ``switch_to_packed``.
        feeds_group_conv: set by networks where a spatial group convolution follows; says only how packed training
            stores the outputs, see :mod:`cnv2_plugin.layers.memory_format`.

    Raises:
        ValueError: ``groups`` does not divide the grouped side, or an argument is out of range.
    """

    deploy: Final[bool]
    packed: Final[bool]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        factor: int = 1,
        over: Literal['outputs', 'inputs'] = 'outputs',
        bias: bool = False,
        stride: int = 1,
        deploy: bool = False,
        dilation: int = 1,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _check_arguments(type(self).__name__, in_channels, out_channels, groups, factor, over, bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.factor = factor
        self.over = over
        self.num_stages = factor - 1
        self.deploy = deploy
        self.packed = False
        self.feeds_group_conv = False
        self.gather = nn.Identity()
        self.scatter = nn.Identity()
        if deploy:
            kept = torch.arange(groups * self.kept_per_group()).remainder(self.num_units()).to(device)
            self._set_permutations(kept)
            self.conv = self._make_group_conv(stride, dilation, bias, device, dtype)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels, 1, stride, dilation=dilation, bias=bias, device=device, dtype=dtype
            )
            self.register_buffer('mask', torch.ones(self.conv.weight.shape, dtype=torch.bool, device=device))
            self.register_buffer('stage', torch.zeros((), dtype=torch.int64, device=device))
            self.register_buffer('kept', torch.zeros(0, dtype=torch.int64, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)``."""
        return self.scatter(self._convolve(self.gather(x)))

    def _convolve(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.conv(x)
        if self.packed:
            return self._convolve_packed(x)
        return F.conv2d(x, self.masked_weight(), self.conv.bias, self.conv.stride)

    def _convolve_packed(self, x: Tensor) -> Tensor:
        """Convolve with the surviving weights, from and to the original order of channels."""
        weight, bias, stride = self.conv.weight, self.conv.bias, self.conv.stride
        if not pays(weight.size(1), self.over, is_channels_last(x)):
            return F.conv2d(x, self.unpack_weight(weight), bias, stride)
        if stride[0] > 1 or stride[1] > 1:
            x = x[:, :, :: stride[0], :: stride[1]]
        weight = weight.flatten(1).unflatten(0, (self.groups, -1))
        if self.over == 'inputs':
            return update_selected(x, weight, self.kept, self.out_channels)
        y = read_selected(x, weight, self.kept, self.feeds_group_conv and trains_on_cpu(x, self.training))
        return y if bias is None else y + bias[:, None, None]

    def num_units(self) -> int:
        """Units in each group: the channels of the side that is not grouped."""
        return self.in_channels if self.over == 'outputs' else self.out_channels

    def kept_per_group(self, stage: Optional[int] = None) -> int:
        """Units alive in each group after ``stage``, by default after the last one."""
        return kept_units(self.num_units(), self.factor, self.num_stages if stage is None else stage)

    def by_unit(self, tensor: Tensor) -> Tensor:
        """View a tensor of the weight's shape as ``(groups, units, members of the unit)``."""
        matrix = tensor.flatten(1)
        if self.over == 'outputs':
            return matrix.unflatten(0, (-1, self.groups)).permute(1, 2, 0)
        return matrix.unflatten(1, (-1, self.groups)).permute(2, 0, 1)

    def is_finished(self) -> bool:
        """Whether the last pruning stage is done; a deployed layer is finished."""
        return self.deploy or int(self.stage) >= self.num_stages

    def kept_fraction(self) -> float:
        """Share of the weights that are not pruned."""
        if self.deploy:
            return self.kept_per_group() / self.num_units()
        return self.mask.float().mean().item()

    def masked_weight(self) -> Tensor:
        """The weight ``(O, I, 1, 1)`` with pruned entries zero; gradients reach surviving weights only."""
        if self.packed:
            return self.unpack_weight(self.conv.weight)
        weight = self.conv.weight
        if self.over == 'inputs':
            alive = self.mask[:, None, : self.groups].flatten(2).to(weight.dtype)
            return (weight.reshape(self.out_channels, -1, self.groups) * alive).reshape(weight.shape)
        alive = self.mask[: self.groups].flatten().to(weight.dtype)
        return (weight.reshape(-1, alive.numel()) * alive).reshape(weight.shape)

    def check_finite(self, name: str = '') -> None:
        """Raise before pruning would compare NaN or infinite weights.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        if not self.deploy and not bool(torch.isfinite(self.conv.weight).all()):
            raise ValueError(
                f'{name or type(self).__name__} has NaN or infinite weights, so its least important connections '
                f'cannot be told; no mask was changed: resume from the last good checkpoint with a lower learning rate.'
            )

    @torch.no_grad()
    def prune_to(self, stage: int) -> None:
        """Do every pruning stage up to ``stage``, one after the other; earlier stages are never undone.

        In each stage and group, the units with the least L1 norm among those alive are pruned; of equal
        ones the lower channel goes first (CondenseNet, section 3.2).

        Args:
            stage: stage to reach, between 0 and ``num_stages``.

        Raises:
            ValueError: ``stage`` is out of range, or a weight is NaN or infinite.
        """
        if not 0 <= stage <= self.num_stages:
            raise ValueError(
                f'stage is {stage}; this layer with factor {self.factor} has stages 0 to {self.num_stages}.'
            )
        if self.deploy or stage <= int(self.stage):
            return
        self.check_finite()
        mask = self.mask.clone()
        alive = self.by_unit(mask)
        for i in range(int(self.stage) + 1, stage + 1):
            masked = (self.conv.weight.detach() * mask).to('cpu', torch.float64)
            importance = self.by_unit(masked).abs().sum(2).masked_fill(~alive[..., 0].cpu(), float('inf'))
            excess = self.kept_per_group(i - 1) - self.kept_per_group(i)
            weakest = importance.argsort(dim=1, stable=True)[:, :excess].to(mask.device)
            alive[torch.arange(self.groups, device=mask.device)[:, None], weakest] = False
        self.mask.copy_(mask)
        self.stage.fill_(stage)

    def kept_index(self, mask: Optional[Tensor] = None) -> Tensor:
        """Kept units of a mask, by default the own, group by group in ascending order: int64 ``(kept,)``."""
        return self.by_unit(self.mask if mask is None else mask)[..., 0].nonzero()[:, 1]

    def group_lasso(self) -> Tensor:
        """Sum over units of the L2 norm of the masked weights (CondenseNet, section 3.2), 0 once finished."""
        if self.is_finished():
            return self.conv.weight.new_zeros(())
        return self.by_unit(self.masked_weight()).square().sum(2).clamp(min=1e-6).sqrt().sum()

    def switch_to_deploy(self) -> None:
        """Become the equivalent standard group convolution, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left.
        """
        if self.deploy:
            return
        self._check_finished('condensing')
        kept = self.kept_index()
        weight = self.conv.weight if self.packed else self.pack_weight(self.conv.weight)
        self._prepare_deploy(kept)
        self._set_permutations(kept)
        self._replace_conv(self._make_group_conv(**self._conv_options()), weight)
        if self.over == 'outputs' and self.conv.bias is not None:
            with torch.no_grad():
                self.conv.bias.copy_(self.conv.bias.unflatten(0, (-1, self.groups)).t().flatten())
        del self.mask, self.stage, self.kept
        self.packed = False
        self.deploy = True
        self.train(self.training)

    def switch_to_packed(self) -> None:
        """Go on training with the surviving weights only, in place; does nothing the second time.

        The function, the gradients of the surviving weights and the normalisation (one over all channels) stay those of
        the masked form; a pruned weight costs nothing more. ``mask`` and ``stage`` stay, and either form loads the
        state dict of the other. See :func:`cnv2_plugin.sparsify.condense_while_training` for the optimiser.

        Raises:
            UnfinishedPruningError: pruning stages are left.
        """
        if self.deploy or self.packed or self.kept_per_group() == self.num_units():
            return
        self._check_finished('packing')
        weight = self.pack_weight(self.conv.weight)
        self.kept = self.kept_index()
        self._replace_conv(self._make_group_conv(**self._conv_options()), weight)
        self.packed = True

    def switch_to_masked(self) -> None:
        """Turn the packed form back into the masked one, in place; pruned weights are 0 then."""
        if self.deploy or not self.packed:
            return
        weight = self.unpack_weight(self.conv.weight)
        self.kept = self.kept.new_zeros(0)
        dense = nn.Conv2d(self.in_channels, self.out_channels, 1, **self._conv_options())
        self._replace_conv(dense, weight)
        self.packed = False

    def pack_weight(self, weight: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Surviving entries of a tensor of the weight's shape, as the weight of the group convolution.

        Args:
            weight: the weight, or an optimiser's average of it, ``(O, I, 1, 1)``.
            mask: of a finished pruning; by default the layer's own.
        """
        kept = self.kept_index(mask)
        units = self.by_unit(weight)
        index = kept.view(self.groups, -1, 1).expand(-1, -1, units.size(2))
        rows = units.gather(1, index)
        if self.over == 'outputs':
            rows = rows.transpose(1, 2)
        return rows.flatten(0, 1)[..., None, None]

    def unpack_weight(self, packed: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """The inverse of :meth:`pack_weight`; pruned entries are 0."""
        kept = self.kept if self.packed and mask is None else self.kept_index(mask)
        rows = packed.flatten(1).unflatten(0, (self.groups, -1))
        if self.over == 'outputs':
            rows = rows.transpose(1, 2)
        index = kept.view(self.groups, -1, 1).expand(-1, -1, rows.size(2))
        units = rows.new_zeros(self.groups, self.num_units(), rows.size(2)).scatter(1, index, rows)
        if self.over == 'outputs':
            return units.permute(2, 0, 1).flatten(0, 1)[..., None, None]
        return units.permute(1, 2, 0).flatten(1)[..., None, None]

    def _replace_conv(self, conv: nn.Conv2d, weight: Tensor) -> None:
        """Put in a convolution that has this weight, and the bias and flags of the one it replaces."""
        old = self.conv
        with torch.no_grad():
            conv.weight.copy_(weight)
        conv.weight.requires_grad_(old.weight.requires_grad)
        conv.bias = old.bias
        conv.train(old.training)
        self.conv = conv

    def _conv_options(self) -> dict:
        conv = self.conv
        return dict(
            stride=conv.stride, dilation=conv.dilation, bias=conv.bias is not None,
            device=conv.weight.device, dtype=conv.weight.dtype,
        )  # fmt: skip

    def _check_finished(self, what: str) -> None:
        if not self.is_finished():
            raise UnfinishedPruningError(
                f'{type(self).__name__}({self.in_channels}, {self.out_channels}) is at pruning stage {int(self.stage)} '
                f'of {self.num_stages}; finish the sparsification schedule, or call prune_to({self.num_stages}), '
                f'before {what} it.'
            )

    def _prepare_deploy(self, kept: Tensor) -> None:
        """For views with a normalisation in front: called when the gathered channels are known."""

    def _set_permutations(self, kept: Tensor) -> None:
        if self.over == 'outputs':
            self.gather = ChannelGather(kept)
            self.scatter = nn.ChannelShuffle(self.groups)
        else:
            self.gather = nn.ChannelShuffle(self.in_channels // self.groups)
            self.scatter = ChannelScatterSum(kept, self.out_channels)

    def _make_group_conv(self, stride, dilation, bias: bool, device, dtype) -> nn.Conv2d:
        kept = self.groups * self.kept_per_group()
        channels = (kept, self.out_channels) if self.over == 'outputs' else (self.in_channels, kept)
        return nn.Conv2d(
            *channels, 1, stride, dilation=dilation, groups=self.groups, bias=bias, device=device, dtype=dtype
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        self._adopt_plain_conv(state_dict, prefix)
        faults = self._state_dict_faults(state_dict, prefix)
        if not self.deploy and not faults:
            faults = self._adopt_other_form(state_dict, prefix)
        errors.extend(faults)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def _adopt_plain_conv(self, state_dict, prefix: str) -> None:
        """Read the keys of a plain convolution as those of this layer before any pruning."""
        if self.deploy or f'{prefix}weight' not in state_dict or f'{prefix}conv.weight' in state_dict:
            return
        for key in ('weight', 'bias'):
            if f'{prefix}{key}' in state_dict:
                state_dict[f'{prefix}conv.{key}'] = state_dict.pop(f'{prefix}{key}')
        state_dict[f'{prefix}mask'] = torch.ones_like(self.mask)
        state_dict[f'{prefix}stage'] = torch.zeros_like(self.stage)

    def _adopt_other_form(self, state_dict, prefix: str) -> list[str]:
        """Read a packed state dict in the masked form and the other way round; returns what is wrong with it."""
        key = f'{prefix}conv.weight'
        weight, mask = state_dict.get(key), state_dict.get(f'{prefix}mask')
        if weight is None or mask is None or mask.shape != self.mask.shape or mask.is_meta or self.mask.is_meta:
            return []
        kept = self.kept_index(mask)
        finished = kept.numel() == self.groups * self.kept_per_group()
        if self.packed and not finished:
            name = prefix.rstrip('.') or type(self).__name__
            return [f'{name}: pruning is not finished in the state dict; call switch_to_masked() before loading it.']
        if self.packed:
            self.kept = kept.to(self.kept.device)
        if self.packed and weight.shape == mask.shape:
            state_dict[key] = self.pack_weight(weight, mask)
        elif finished and not self.packed and weight.shape != mask.shape:
            state_dict[key] = self.unpack_weight(weight, mask)
        return []

    def _state_dict_faults(self, state_dict, prefix: str) -> list[str]:
        name = prefix.rstrip('.') or type(self).__name__
        condensed = any(f'{prefix}{key}.index' in state_dict for key in ('gather', 'scatter'))
        masked = f'{prefix}mask' in state_dict
        if masked and self.deploy:
            return [
                f'{name}: the state dict holds the training form; build the model with deploy=False, load, then '
                f'call switch_to_deploy().'
            ]
        if condensed and not self.deploy:
            return [f'{name}: the state dict holds the condensed form; build the model with deploy=True to load it.']
        mask, stage = state_dict.get(f'{prefix}mask'), state_dict.get(f'{prefix}stage')
        if self.deploy:
            return self._index_faults(state_dict, prefix, name)
        if mask is None or stage is None or mask.shape != self.mask.shape or mask.is_meta:
            return []
        units = self.by_unit(mask.bool())
        if not 0 <= int(stage) <= self.num_stages:
            return [
                f'{name}: stage is {int(stage)}; a layer with factor {self.factor} has stages 0 to {self.num_stages}.'
            ]
        whole = bool((units == units[..., :1]).all())
        expected = self.kept_per_group(int(stage))
        if not whole or not bool((units[..., 0].sum(1) == expected).all()):
            return [
                f'{name}: mask and stage disagree; at stage {int(stage)} each of the {self.groups} groups keeps '
                f'{expected} of {self.num_units()} channels.'
            ]
        return []

    def _index_faults(self, state_dict, prefix: str, name: str) -> list[str]:
        for key in ('gather', 'scatter'):
            index = state_dict.get(f'{prefix}{key}.index')
            if index is None or index.is_meta or index.numel() == 0:
                continue
            if int(index.min()) < 0 or int(index.max()) >= self.num_units():
                return [
                    f'{name}: {key}.index must lie in 0 to {self.num_units() - 1}, but holds {int(index.min())} '
                    f'to {int(index.max())}.'
                ]
        return []

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, groups={self.groups}, factor={self.factor}, deploy={self.deploy}'
        )


def _check_arguments(name, in_channels, out_channels, groups, factor, over, bias) -> None:
    if over not in ('outputs', 'inputs'):
        raise ValueError(f"{name}: over is {over!r}; it takes 'outputs' or 'inputs'.")
    for argument, value in (
        ('in_channels', in_channels),
        ('out_channels', out_channels),
        ('groups', groups),
        ('factor', factor),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f'{name}: {argument} is {value!r}; it takes a whole number of at least 1.')
    grouped = out_channels if over == 'outputs' else in_channels
    if grouped % groups:
        divisors = [d for d in range(1, grouped + 1) if grouped % d == 0]
        nearest = sorted(sorted(divisors, key=lambda d: abs(d - groups))[:4])
        side = 'out_channels' if over == 'outputs' else 'in_channels'
        raise ValueError(
            f'{name}: groups={groups} does not divide {side}={grouped}; groups that do: '
            f'{", ".join(map(str, nearest))}, '
            f'or make {side} a multiple of {groups}, such as {grouped + groups - grouped % groups}.'
        )
    if bias and over == 'inputs':
        raise ValueError(f"{name}: bias=True is for over='outputs'; with over='inputs' add the bias after the layer.")

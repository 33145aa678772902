"""The group-sparse 1x1 convolution that LGC and SFR are two views of: masked, then packed if wanted, then condensed."""

from inspect import isfunction
from typing import Any, Literal, Optional, Union
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.types import Device

from .convolutions import SparseConv2d, check_knows_masks, conv_options, group_product, masked_weight, replacement_conv
from .grouping import GroupedSide, Grouping
from .known import check_exact, is_class, refuse
from .state_dicts import adopt_average, adopt_other_state, adopt_plain_conv, state_dict_faults

LIVING: 'WeakSet[GroupSparseConv2d]' = WeakSet()
"""The group-sparse layers of this process, by weak references; copied and unpickled ones too."""


class UnfinishedPruningError(RuntimeError):
    """A layer is asked for its packed or condensed state before its last pruning stage."""


class GroupSparseConv2d(nn.Module):
    """A 1x1 convolution whose weight becomes group-sparse by staged pruning.

    Pruning empties ``mask`` unit by unit (see :class:`.Grouping`) and never touches the weights. A plain ``nn.Conv2d``
    of the same shape has a state dict that this layer loads too.

    The layer has one state at a time; all compute the same function once pruning is finished:

    - ``'masked'``: trains and prunes; all weights are there.
    - ``'packed'``, by :meth:`switch_to_packed`: goes on training with the surviving weights only.
    - ``'condensed'``, by :meth:`switch_to_deploy`: a standard group convolution between ``gather`` and ``scatter``,
      which are identities before.

    Args:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``; divides the grouped side.
        factor: condense or sparse factor; pruning takes ``factor - 1`` stages.
        grouped_side: ``'outputs'``: each group of outputs keeps ``ceil(I / factor)`` inputs (learned group
            convolution); ``'inputs'``: each group of inputs keeps ``ceil(O / factor)`` outputs (sparse feature
            reactivation).
        bias: adds a bias (``grouped_side='outputs'`` only: a pruned output would lose its bias otherwise).
        stride: stride of the convolution.
        dilation: kept for what reads it; a 1x1 kernel has nothing to dilate.
        deploy: build the condensed layer directly, with the state-dict keys of ``switch_to_deploy``.

    Attributes:
        grouping: the groups and units of the weight.
        state: ``'masked'``, ``'packed'`` or ``'condensed'``.
        num_stages: stages until pruning is finished.
        mask: bool buffer ``(O, I, 1, 1)`` (not in a condensed layer).
        stage: int64 scalar buffer, pruning stages done (not in a condensed layer).
        kept: int64 buffer, the units of each group ``(G * K,)`` while packed, else empty (not in a condensed layer; not
            in the state dict).

    Raises:
        ValueError: ``groups`` does not divide the grouped side, or an argument is out of range.
    """

    mask: Tensor
    stage: Tensor
    kept: Tensor
    __jit_unused_properties__ = ['deploy', 'packed']

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        factor: int = 1,
        grouped_side: GroupedSide = 'outputs',
        bias: bool = False,
        stride: Union[int, tuple[int, int]] = 1,
        deploy: bool = False,
        dilation: Union[int, tuple[int, int]] = 1,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        LIVING.add(self)
        self.grouping = Grouping(in_channels, out_channels, groups, factor, grouped_side)
        if bias and grouped_side == 'inputs':
            raise ValueError("bias=True is for grouped_side='outputs'; with 'inputs' add the bias after the layer.")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.groups, self.factor, self.grouped_side = groups, factor, grouped_side
        self.num_units, self.num_stages = self.grouping.num_units, self.grouping.num_stages
        self.state: Literal['masked', 'packed', 'condensed'] = 'condensed' if deploy else 'masked'
        self.gather: nn.Module = nn.Identity()
        self.scatter: nn.Module = nn.Identity()
        options: dict[str, Any] = dict(stride=stride, dilation=dilation, bias=bias, device=device, dtype=dtype)
        if deploy:
            self.conv = self.grouping.group_conv(**options)
            kept = torch.arange(groups * self.kept_per_group()).remainder(self.num_units).to(device)
            self.gather, self.scatter = self.grouping.gather(kept), self.grouping.scatter(kept)
            return
        self.conv = self.grouping.sparse_conv(False, **options)
        self.register_buffer('mask', torch.ones(self.conv.weight.shape, dtype=torch.bool, device=device))
        self.register_buffer('stage', torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer('kept', torch.zeros(0, dtype=torch.int64, device=device), persistent=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        LIVING.add(self)

    def reset_parameters(self) -> None:
        """Start again, masked and at stage 0, with a new convolution; a condensed layer stays condensed."""
        self.switch_to_masked()
        self.conv.reset_parameters()
        if self.state != 'condensed':
            self.mask.fill_(True)
            self.stage.zero_()

    def take_pruning(self, other: 'GroupSparseConv2d') -> None:
        """Take the mask and the stage of a layer of the same shape."""
        self.mask.copy_(other.mask)
        self.stage.copy_(other.stage)

    @property
    def deploy(self) -> bool:
        """Whether the layer is condensed."""
        return self.state == 'condensed'

    @property
    def packed(self) -> bool:
        """Whether the layer trains the surviving weights only."""
        return self.state == 'packed'

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, H, W)`` to ``(N, O, H, W)``."""
        return self.scatter(self._convolve(self.gather(x)))

    def _convolve(self, x: Tensor) -> Tensor:
        if not hasattr(self, 'mask'):  # condensed; TorchScript resolves this when it compiles, a comparison it does not
            if not torch.jit.is_scripting():
                product = group_product(x, self.conv, self.training)
                if product is not None:
                    return product
            return self.conv(x)
        if not torch.jit.is_scripting():
            check_knows_masks(self.conv, self._short)
        return self.conv(x, self.mask, self.kept)

    def masked_weight(self) -> Tensor:
        """The weight ``(O, I, 1, 1)`` with pruned entries zero; gradients reach surviving weights only.

        Raises:
            RuntimeError: the layer is condensed.
        """
        if self.state == 'condensed':
            raise RuntimeError(
                f'{type(self).__name__} is condensed, without a masked weight; read conv.weight instead.'
            )
        if self.state == 'packed':
            return self.grouping.unpack(self.conv.weight, self.kept)
        return masked_weight(self.conv.weight, self.mask, self.groups, self.grouped_side)

    def is_finished(self) -> bool:
        """Whether the last pruning stage is done; a condensed layer is finished."""
        return self.stages_done() >= self.num_stages

    def stages_done(self) -> int:
        """Pruning stages done, as the mask says: averaging of weights may have changed ``stage``."""
        if self.state == 'condensed':
            return self.num_stages
        return self.grouping.stage_of(self.mask, int(self.stage))

    def kept_per_group(self, stage: Optional[int] = None) -> int:
        """Count the units alive in each group after ``stage``, by default after the last one."""
        return self.grouping.kept_per_group(stage)

    def kept_fraction(self) -> float:
        """Share of the weights that are not pruned."""
        if self.state == 'condensed':
            return self.kept_per_group() / self.num_units
        return self.mask.float().mean().item()

    def check_finite(self, name: str = '') -> None:
        """Raise before pruning would compare NaN or infinite weights.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        if self.state != 'condensed' and not bool(torch.isfinite(self.conv.weight).all()):
            raise ValueError(
                f'{name or type(self).__name__} has NaN or infinite weights, so its least important connections cannot '
                f'be told; no mask was changed: resume from the last good checkpoint with a lower learning rate.'
            )

    @torch.no_grad()
    def prune_to(self, stage: int, importance: Optional[Tensor] = None) -> None:
        """Do every pruning stage up to ``stage``, one after the other; earlier stages are never undone.

        Args:
            stage: stage to reach, between 0 and ``num_stages``.
            importance: of each unit, ``(groups, units)``; by default the L1 norm of its weights (CondenseNet,
                section 3.2). See :meth:`.Grouping.next_mask`.

        Raises:
            ValueError: ``stage`` is out of range, ``importance`` has another shape, or a weight or an importance is
                NaN or infinite; no mask is changed then.
        """
        if not 0 <= stage <= self.num_stages:
            raise ValueError(
                f'stage is {stage}; this layer with factor {self.factor} has stages 0 to {self.num_stages}.'
            )
        done = self.stages_done()
        if stage <= done:
            return
        self.check_finite()
        if importance is None:
            importance = self.grouping.by_unit(self.conv.weight.to('cpu', torch.float64)).abs().sum(2)
        else:
            self.grouping.check_importance(importance)
        importance = importance.detach().to('cpu', torch.float64)
        mask = self.mask
        for due in range(done + 1, stage + 1):
            mask = self.grouping.next_mask(mask, importance, due)
        self.mask.copy_(mask)
        self.stage.fill_(stage)

    def group_lasso(self) -> Tensor:
        """Sum over units of the L2 norm of the masked weights (CondenseNet, section 3.2); 0 once finished."""
        if self.is_finished():
            return self.conv.weight.new_zeros(())
        return self.grouping.by_unit(self.masked_weight()).square().sum(2).clamp(min=1e-6).sqrt().sum()

    def pack_weight(self, weight: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Take the surviving entries of a tensor of the weight's shape, as the packed layer has them.

        Args:
            weight: the weight, or an optimiser's average of it, ``(O, I, 1, 1)``.
            mask: of a finished pruning; by default the layer's own.
        """
        return self.grouping.pack(weight, self.grouping.kept_index(self.mask if mask is None else mask))

    def unpack_weight(self, packed: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """The inverse of :meth:`pack_weight`; pruned entries are 0."""
        return self.grouping.unpack(packed, self.grouping.kept_index(self.mask if mask is None else mask))

    def check_known(self, name: str = '') -> None:
        """Raise unless every part of the layer that condensing replaces or reads is what its class says.

        Args:
            name: of the layer in its model, for the message.

        Raises:
            UnknownModuleError: condensing could not be proven exact.
        """
        kind = next(k for k in type(self).__mro__ if k.__module__.startswith(__package__))
        method = any(isfunction(getattr(type(self), attribute, None)) for attribute in vars(self))
        if method or not is_class(self, kind):
            raise refuse(name or self._short(), self, f'computes something else than {kind.__name__}')
        self._check_plain(name)
        check_exact((f'{name}.{part}', getattr(self, part), (nn.Identity,)) for part in ('gather', 'scatter'))

    def switch_to_deploy(self) -> None:
        """Condense to the equivalent standard group convolution, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left.
            UnknownModuleError: a part is not what its class says.
        """
        if self.state == 'condensed':
            return
        self._check_finished('condensing')
        self.check_known()
        kept = self.grouping.kept_index(self.mask)
        weight = self.conv.weight if self.state == 'packed' else self.grouping.pack(self.conv.weight, kept)
        self._condense_norm(kept)
        self.conv = replacement_conv(self.grouping.group_conv(**conv_options(self.conv)), weight, self.conv)
        if self.conv.bias is not None:
            with torch.no_grad():  # output o is in group o mod G: into the order of the groups
                self.conv.bias.copy_(self.conv.bias.unflatten(0, (-1, self.groups)).t().flatten())
        self.gather, self.scatter = self.grouping.gather(kept), self.grouping.scatter(kept)
        del self.mask, self.stage, self.kept
        self.state = 'condensed'
        self.gather.train(self.training)
        self.scatter.train(self.training)

    def switch_to_packed(self) -> None:
        """Go on training with the surviving weights only, in place; does nothing the second time.

        The function, the gradients of the surviving weights and the normalisation (one over all channels) stay those of
        the masked layer; a pruned weight costs nothing more. ``mask`` and ``stage`` stay, and either state loads the
        state dict of the other. See :func:`cnv2_plugin.sparsify.pack_model` for the optimiser.

        Raises:
            UnfinishedPruningError: pruning stages are left.
        """
        if self.state != 'masked' or self.kept_per_group() == self.num_units:
            return
        self._check_finished('packing')
        self._check_plain()
        self.kept = self.grouping.kept_index(self.mask)
        weight = self.grouping.pack(self.conv.weight, self.kept)
        self.conv = replacement_conv(self.grouping.sparse_conv(True, **conv_options(self.conv)), weight, self.conv)
        self.state = 'packed'

    def switch_to_masked(self) -> None:
        """Turn a packed layer back into a masked one, in place; pruned weights are 0 then."""
        if self.state != 'packed':
            return
        weight = self.grouping.unpack(self.conv.weight, self.kept)
        self.kept = self.kept.new_zeros(0)
        self._check_plain()
        self.conv = replacement_conv(self.grouping.sparse_conv(False, **conv_options(self.conv)), weight, self.conv)
        self.state = 'masked'

    def dense_conv(self) -> nn.Conv2d:
        """A standard convolution that computes what this masked or packed one does, pruned weights 0.

        Raises:
            RuntimeError: the layer is condensed.
        """
        dense = nn.Conv2d(self.in_channels, self.out_channels, 1, **conv_options(self.conv))
        return replacement_conv(dense, self.masked_weight(), self.conv)

    def _condense_norm(self, kept: Tensor) -> None:
        """For views with a normalisation in front: called when the gathered channels are known."""

    def _check_finished(self, action: str) -> None:
        if not self.is_finished():
            raise UnfinishedPruningError(
                f'{self._short()} is at pruning stage {self.stages_done()} of {self.num_stages}; finish the '
                f'sparsification schedule, or call prune_to({self.num_stages}), before {action} it.'
            )

    def _check_plain(self, name: str = '') -> None:
        """Raise before another convolution would take the place of one that does more than its class says."""
        check_exact([(f'{name or self._short()}.conv', self.conv, (SparseConv2d,))])

    def _short(self) -> str:
        return f'{type(self).__name__}({self.in_channels}, {self.out_channels})'

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        adopt_plain_conv(self, state_dict, prefix)
        adopt_average(self, state_dict, prefix)
        errors.extend(state_dict_faults(self, state_dict, prefix) or adopt_other_state(self, state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, groups={self.groups}, factor={self.factor}, deploy={self.deploy}'
        )

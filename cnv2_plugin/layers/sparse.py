"""The masked group-sparse 1x1 convolution that LGC and SFR are two views of."""

from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn
from torch.types import Device

from .checks import check_arguments, check_finished, check_finite, check_importance, check_stage
from .condensed import conv_options, group_conv, group_order, permutations, replacement_conv
from .grouped import Grouped
from .masked import MaskedForm, group_lasso, pruned_mask
from .packed import PackedForm
from .state_dicts import adopt_other_form, adopt_plain_conv, state_dict_faults


class GroupSparseConv2d(Grouped, nn.Module):
    """A 1x1 convolution whose weight becomes group-sparse by staged pruning.

    One prunable unit is all weights between one group and one channel of the other side. With
    ``grouped_side='outputs'`` output ``o`` is in group ``o mod G`` and each group keeps ``ceil(I / factor)`` inputs
    (learned group convolution); with ``grouped_side='inputs'`` input ``i`` is in group ``i mod G`` and each group
    keeps ``ceil(O / factor)`` outputs (sparse feature reactivation). Pruning empties ``mask`` and never
    touches the weights. A plain ``nn.Conv2d`` of the same shape has a state dict that this layer loads too.

    The layer has one of three forms, each in a file of its own; all compute the same function once pruning is finished:

    - masked (:mod:`.masked`): trains and prunes; all weights are there.
    - packed (:mod:`.packed`), by ``switch_to_packed``: goes on training with the surviving weights only.
    - condensed (:mod:`.condensed`), by ``switch_to_deploy``: a standard group convolution between two permutations.

    Args:
        in_channels: input channels ``I``.
        out_channels: output channels ``O``.
        groups: number of groups ``G``; divides the grouped side.
        factor: condense or sparse factor; pruning takes ``factor - 1`` stages.
        grouped_side: which side is grouped, ``'outputs'`` or ``'inputs'``.
        bias: adds a bias (``grouped_side='outputs'`` only: a pruned output would lose its bias otherwise).
        stride: stride of the convolution.
        dilation: kept for what reads it; a 1x1 kernel has nothing to dilate.
        deploy: build the group-convolution form directly, with the state-dict keys of ``switch_to_deploy``.

    Attributes:
        mask: bool buffer of the weight's shape (training form only).
        stage: int64 scalar buffer, pruning stages done (training form only).
        num_stages: stages until pruning is finished.
        kept: int64 buffer, the units of each group ``(G * K,)`` while packed, else empty (training form only; not in
            the state dict).
        deploy: the layer is condensed.
        packed: the training form holds the surviving weights only.
        form: how the training form convolves: masked or packed; None once condensed.

    Raises:
        ValueError: ``groups`` does not divide the grouped side, or an argument is out of range.
    """

    __constants__ = ['deploy', 'packed']  # of TorchScript

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        factor: int = 1,
        grouped_side: Literal['outputs', 'inputs'] = 'outputs',
        bias: bool = False,
        stride: Union[int, tuple[int, int]] = 1,
        deploy: bool = False,
        dilation: Union[int, tuple[int, int]] = 1,
        device: Device = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        check_arguments(type(self).__name__, in_channels, out_channels, groups, factor, grouped_side, bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.factor = factor
        self.grouped_side = grouped_side
        self.num_stages = factor - 1
        self.deploy = deploy
        self.packed = False
        self.gather: nn.Module = nn.Identity()
        self.scatter: nn.Module = nn.Identity()
        self.form: Union[MaskedForm, PackedForm, None] = None
        if deploy:
            kept = torch.arange(groups * self.kept_per_group()).remainder(self.num_units()).to(device)
            self.gather, self.scatter = permutations(kept, *self._shape())
            self.conv = self._group_conv(stride=stride, dilation=dilation, bias=bias, device=device, dtype=dtype)
        else:
            self.form = MaskedForm(groups, grouped_side)
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
        if self.deploy or self.form is None:
            return self.conv(x)
        return self.form(x, self.conv.weight, self.conv.bias, self.conv.stride, self.mask, self.kept)

    def masked_weight(self) -> Tensor:
        """The weight ``(O, I, 1, 1)`` with pruned entries zero; gradients reach surviving weights only.

        Raises:
            RuntimeError: the layer is condensed.
        """
        if self.form is None:
            raise RuntimeError(
                f'{type(self).__name__} is condensed and has no masked weight; read conv.weight instead.'
            )
        return self.form.weight(self.conv.weight, self.mask, self.kept)

    def check_finite(self, name: str = '') -> None:
        """Raise before pruning would compare NaN or infinite weights.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        if not self.deploy:
            check_finite(name or type(self).__name__, self.conv.weight)

    @torch.no_grad()
    def prune_to(self, stage: int, importance: Optional[Tensor] = None) -> None:
        """Do every pruning stage up to ``stage``, one after the other; earlier stages are never undone.

        In each stage and group, the units with the least importance among those alive are pruned; of equal
        ones the lower channel goes first.

        Args:
            stage: stage to reach, between 0 and ``num_stages``.
            importance: of each unit, ``(groups, units)``; by default the L1 norm of its weights (CondenseNet,
                section 3.2).

        Raises:
            ValueError: ``stage`` is out of range, ``importance`` has another shape, or a weight or an importance is
                NaN or infinite; no mask is changed then.
        """
        check_stage(stage, self.factor)
        if self.deploy or stage <= int(self.stage):
            return
        self.check_finite()
        if importance is not None:
            check_importance(importance, (self.groups, self.num_units()))
        stages = range(int(self.stage) + 1, stage + 1)
        mask = pruned_mask(self.mask, self.conv.weight, self.groups, self.grouped_side, self.factor, stages, importance)
        self.mask.copy_(mask)
        self.stage.fill_(stage)

    def group_lasso(self) -> Tensor:
        """Sum over units of the L2 norm of the masked weights (CondenseNet, section 3.2); 0 once finished."""
        if self.is_finished():
            return self.conv.weight.new_zeros(())
        return group_lasso(self.masked_weight(), self.groups, self.grouped_side)

    def switch_to_deploy(self) -> None:
        """Become the equivalent standard group convolution, in place; does nothing the second time.

        Raises:
            UnfinishedPruningError: pruning stages are left.
        """
        if self.deploy:
            return
        check_finished(self, 'condensing')
        kept = self.kept_index()
        weight = self.conv.weight if self.packed else self.pack_weight(self.conv.weight)
        self._prepare_deploy(kept)
        self.gather, self.scatter = permutations(kept, *self._shape())
        self.conv = replacement_conv(self._group_conv(**conv_options(self.conv)), weight, self.conv)
        if self.conv.bias is not None:
            with torch.no_grad():
                self.conv.bias.copy_(group_order(self.conv.bias, self.groups))
        del self.mask, self.stage, self.kept
        self.form = None
        self.packed = False
        self.deploy = True
        self.train(self.training)

    def switch_to_packed(self) -> None:
        """Go on training with the surviving weights only, in place; does nothing the second time.

        The function, the gradients of the surviving weights and the normalisation (one over all channels) stay those of
        the masked form; a pruned weight costs nothing more. ``mask`` and ``stage`` stay, and either form loads the
        state dict of the other. See :func:`cnv2_plugin.sparsify.pack_model` for the optimiser.

        Raises:
            UnfinishedPruningError: pruning stages are left.
        """
        if self.deploy or self.packed or self.kept_per_group() == self.num_units():
            return
        check_finished(self, 'packing')
        weight = self.pack_weight(self.conv.weight)
        self.kept = self.kept_index()
        self.conv = replacement_conv(self._group_conv(**conv_options(self.conv)), weight, self.conv)
        self.form = PackedForm(self.groups, self.grouped_side, self.num_units())
        self.packed = True

    def switch_to_masked(self) -> None:
        """Turn the packed form back into the masked one, in place; pruned weights are 0 then."""
        if self.deploy or not self.packed:
            return
        weight = self.unpack_weight(self.conv.weight)
        self.kept = self.kept.new_zeros(0)
        dense = nn.Conv2d(self.in_channels, self.out_channels, 1, **conv_options(self.conv))
        self.conv = replacement_conv(dense, weight, self.conv)
        self.form = MaskedForm(self.groups, self.grouped_side)
        self.packed = False

    def _prepare_deploy(self, kept: Tensor) -> None:
        """For views with a normalisation in front: called when the gathered channels are known."""

    def _group_conv(self, **options: Any) -> nn.Conv2d:
        return group_conv(self.groups * self.kept_per_group(), *self._shape(), **options)

    def _shape(self) -> tuple[int, int, int, str]:
        return self.in_channels, self.out_channels, self.groups, self.grouped_side

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        adopt_plain_conv(self, state_dict, prefix)
        faults = state_dict_faults(self, state_dict, prefix)
        if not self.deploy and not faults:
            faults = adopt_other_form(self, state_dict, prefix)
        errors.extend(faults)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, groups={self.groups}, factor={self.factor}, deploy={self.deploy}'
        )

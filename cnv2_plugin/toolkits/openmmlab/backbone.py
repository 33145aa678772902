"""Adds to a trunk what mmpretrain and mmdet expect of a backbone."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from torch import Tensor, nn

from ...layers import GroupSparseConv2d
from ...layers.reactivation import ActLayer, NormLayer
from ...layers.state_dicts import state_dict_faults
from ...models.base import Condensable

_NORMS = {'BN': nn.BatchNorm2d, 'BN2d': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


class StrictForm(Condensable):
    """Raises if weights of a training form are loaded into a deployed module, or the reverse.

    mmengine loads with ``strict=False`` and only logs tensors that do not fit, so that a test would run on random
    weights.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        layers = ((name, layer) for name, layer in self.named_modules() if isinstance(layer, GroupSparseConv2d))
        faults = [f for name, layer in layers for f in state_dict_faults(layer, state_dict, f'{prefix}{name}.')]
        if faults:
            more = f' The same holds for {len(faults) - 1} more layers.' if len(faults) > 1 else ''
            raise ValueError(f'{faults[0]}{more}')
        super()._load_from_state_dict(state_dict, prefix, *args)


class OpenMMLabBackbone(StrictForm):
    """Adds OpenMMLab's interface to a trunk with ``stem``, ``stages``, ``forward_stem`` and ``forward_final``.

    Inherit in the order ``OpenMMLabBackbone, <trunk>, BaseModule``. Stages behind the last chosen output are not
    built into the model, so that every parameter gets a gradient.

    Args:
        arch: shape of the trunk.
        in_channels: channels of the images.
        out_indices: outputs to return; an int or several, negative ones count from the end.
        frozen_stages: -1 freezes nothing, 0 the stem, ``n`` the stem and the first ``n`` stages (and what follows the
            last stage, where all are frozen). Frozen parts get no gradient and stay in eval mode.
        norm_eval: keep every batch normalisation in eval mode.
        norm_cfg: ``dict(type='BN')`` or ``dict(type='SyncBN')``, with options.
        act_cfg: activation in place of the architecture's own, or None.
        with_cp: recompute each layer in the backward pass to save activation memory.
        out_norm: normalise and activate every returned stage that is not final (batch normalisation and ReLU in
            ``out_norms.<index>``).
        deploy: build the group-convolution form.
        init_cfg: mmengine's initialisation; the papers' initialisation where None.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` name no stage, or a type in ``norm_cfg`` cannot be condensed.
        TypeError: an argument has the wrong type.
    """

    final_is_output: bool

    def __init__(
        self,
        arch,
        in_channels: int = 3,
        out_indices: Union[int, Sequence[int]] = -1,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),  # noqa: B006
        act_cfg: Optional[Mapping[str, Any]] = None,
        with_cp: bool = False,
        out_norm: bool = False,
        deploy: bool = False,
        init_cfg: Union[dict, list, None] = None,
        **trunk_options,
    ) -> None:
        norm_layer = norm_layer_from(norm_cfg)
        super().__init__(
            arch=arch, in_chans=in_channels, norm_layer=norm_layer, act_layer=_act_layer_from(act_cfg), deploy=deploy,
            init_cfg=init_cfg, **trunk_options,
        )  # fmt: skip
        num_stages = len(self.stages)
        self.final_index = num_stages if self.final_is_output else num_stages - 1
        self.out_indices = _stage_indices(out_indices, self.final_index + 1)
        if not isinstance(frozen_stages, int):
            raise TypeError(f'frozen_stages is {frozen_stages!r}; it takes a whole number.')
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(
                f'frozen_stages is {frozen_stages}; it takes -1 (nothing), 0 (the stem) to {num_stages} (all stages).'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.keep_stages(self.out_indices[-1] + 1)
        if self.final_index not in self.out_indices:
            setattr(self, self.final_attribute, nn.Identity())
        self.out_norms = nn.ModuleDict()
        if out_norm:
            for i in self.out_indices:
                if i != self.final_index:
                    self.out_norms[str(i)] = nn.Sequential(norm_layer(self.stage_channels[i]), nn.ReLU(inplace=True))
        for stage in self.stages:
            stage.grad_checkpointing = with_cp
        self._frozen_modules().requires_grad_(False)
        self.train(self.training)

    @property
    def out_channels(self) -> list[int]:
        """Channels of each returned feature map, as ``in_channels`` of a neck."""
        final = self.final_index
        return [self.num_features if i == final else self.stage_channels[i] for i in self.out_indices]

    @property
    def out_strides(self) -> list[int]:
        """Stride of each returned feature map relative to the image."""
        return [self.stage_strides[min(i, len(self.stage_strides) - 1)] for i in self.out_indices]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images ``(N, in_channels, H, W)`` to one feature map for each of ``out_indices``."""
        outputs = {}
        x = self.forward_stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            outputs[i] = self.out_norms[str(i)](x) if str(i) in self.out_norms else x
        if self.final_index in self.out_indices:
            outputs[self.final_index] = self.forward_final(x)
        return tuple(outputs[i] for i in self.out_indices)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, for MMPretrain's layer-wise learning rates.

        The stem has depth 0, each layer of the stages is one deeper than the one before, everything else comes last.
        """
        layers = (f'stages.{i}.layers.{j}.' for i, stage in enumerate(self.stages) for j in range(len(stage.layers)))
        starts = ('stem.', *layers)
        name = param_name.removeprefix(prefix)
        return next((i for i, s in enumerate(starts) if name.startswith(s)), len(starts)), len(starts) + 1

    def train(self, mode: bool = True):
        """Set training mode, except for frozen parts and, with ``norm_eval``, batch normalisation."""
        super().train(mode)
        self._frozen_modules().eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> nn.ModuleList:
        frozen = nn.ModuleList()
        if self.frozen_stages >= 0:
            frozen.extend([self.stem, *self.stages[: self.frozen_stages]])
        if self.frozen_stages == len(self.stage_channels):
            frozen.append(getattr(self, self.final_attribute))
        return frozen


def _stage_indices(out_indices: Union[int, Sequence[int]], count: int) -> tuple[int, ...]:
    """Check ``out_indices`` and return them non-negative and ascending."""
    given = (out_indices,) if isinstance(out_indices, int) else out_indices
    if not isinstance(given, Sequence) or isinstance(given, str) or any(not isinstance(i, int) for i in given):
        raise TypeError(f'out_indices is {out_indices!r}; it takes a whole number or a sequence of them.')
    indices = sorted({i + count if i < 0 else i for i in given})
    if not indices or not 0 <= indices[0] <= indices[-1] < count or len(indices) != len(given):
        raise ValueError(
            f'out_indices is {out_indices!r}; it takes different numbers from {-count} to {count - 1}, at least one.'
        )
    return tuple(indices)


def norm_layer_from(norm_cfg: Mapping[str, Any]) -> NormLayer:
    """Make a normalisation factory from ``norm_cfg``: ``type`` and, optionally, ``requires_grad`` and arguments."""
    if not isinstance(norm_cfg, Mapping):
        raise TypeError(f"norm_cfg is {norm_cfg!r}; it takes a dict such as dict(type='BN').")
    options = dict(norm_cfg)
    kind = options.pop('type', None)
    if kind not in _NORMS:
        raise ValueError(
            f'norm_cfg has type {kind!r}; it takes {", ".join(map(repr, _NORMS))}: only batch normalisation can be '
            f'folded into the deployed group convolutions.'
        )
    trainable = options.pop('requires_grad', True)

    def norm_layer(channels: int) -> nn.Module:
        return _NORMS[kind](channels, **options).requires_grad_(trainable)

    return norm_layer


def _act_layer_from(act_cfg: Optional[Mapping[str, Any]]) -> Optional[ActLayer]:
    """Make an activation factory from ``act_cfg``, built by mmcv, or None for the architecture's own activations."""
    if act_cfg is None:
        return None
    if not isinstance(act_cfg, Mapping) or 'type' not in act_cfg:
        raise TypeError(
            f"act_cfg is {act_cfg!r}; it takes a dict such as dict(type='ReLU'), or None for the architecture's own."
        )
    from mmcv.cnn import build_activation_layer

    return lambda: build_activation_layer(dict(act_cfg))

"""Normalisation and activation layers from OpenMMLab's ``norm_cfg`` and ``act_cfg``."""

from collections.abc import Mapping
from typing import Any, Optional

from torch import nn

from ...layers.reactivation import ActLayer, NormLayer

_NORMS = {'BN': nn.BatchNorm2d, 'BN2d': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


def norm_layer_from(norm_cfg: Mapping[str, Any]) -> NormLayer:
    """Make a normalisation factory from ``norm_cfg``.

    Args:
        norm_cfg: ``type`` ``'BN'`` or ``'SyncBN'``, optionally ``requires_grad`` and arguments of the layer.

    Raises:
        TypeError: not a dict.
        ValueError: another type; the group-convolution form exists for batch normalisation only.
    """
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


def act_layer_from(act_cfg: Optional[Mapping[str, Any]]) -> Optional[ActLayer]:
    """Make an activation factory from ``act_cfg`` (built by mmcv), or None for the architecture's own activations.

    Raises:
        TypeError: neither a dict with ``type`` nor None.
    """
    if act_cfg is None:
        return None
    if not isinstance(act_cfg, Mapping) or 'type' not in act_cfg:
        raise TypeError(
            f"act_cfg is {act_cfg!r}; it takes a dict such as dict(type='ReLU'), or None for the architecture's own."
        )
    from mmcv.cnn import build_activation_layer

    return lambda: build_activation_layer(dict(act_cfg))

"""Stages of our trunks, and single group-sparse layers of any model, as plans for the native kernels."""

from typing import Optional

from torch import nn

from ...layers import GroupSparseConv2d
from ...models.condensenet import DenseStage
from ...models.shufflenet import ShuffleStage
from .classifier import NativeClassifier, native_classifier
from .dense import dense_stages
from .head import Head, find_head, native_head
from .layers import UnsupportedError, single_layer
from .module import DeferredConv2d, NativeStages
from .shuffle import shuffle_stages

__all__ = [
    'DeferredConv2d', 'Head', 'NativeClassifier', 'NativeStages', 'find_head', 'native', 'native_classifier',
    'native_head',
]  # fmt: skip


def native(
    module: nn.Module, channels: int, stem: Optional[nn.Module] = None, final: Optional[nn.Sequential] = None
) -> Optional[NativeStages]:
    """A condensed part of a model in the native kernels, or None where it has a layer that they do not compute.

    Args:
        module: a chain of stages, one stage, or one group-sparse layer, condensed.
        channels: of its input.
        stem: what gives the first stage its input and is computed with it.
        final: normalisation and activation behind dense stages, computed with them.
    """
    try:
        stages = list(module) if isinstance(module, nn.Sequential) else [module]
        dense = [stage for stage in stages if isinstance(stage, DenseStage)]
        if len(dense) == len(stages):
            return dense_stages(dense, channels, stem, final)
        shuffled = [stage for stage in stages if isinstance(stage, ShuffleStage)]
        if len(shuffled) == len(stages) and final is None:
            return shuffle_stages(shuffled, channels, stem)
        if len(stages) == 1 and isinstance(module, GroupSparseConv2d) and stem is None:
            return single_layer(module)
    except UnsupportedError:
        pass
    return None

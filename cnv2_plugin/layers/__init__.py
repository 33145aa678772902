"""The layers of the papers in plain PyTorch, each with a training form and an exact group-convolution form.

Begin with :mod:`.reactivation`, the two equations. Both layers are a :class:`.sparse.GroupSparseConv2d` with one state
at a time: masked, packed or condensed; :mod:`.grouping` says which weights form a unit and which unit is pruned.
"""

from .grouping import Grouping, kept_units, largest_divisor
from .known import UnknownModuleError
from .linear import SelectiveLinear, SqueezeExcite
from .memory_format import SpatialGroupConv2d
from .permute import ChannelGather, ChannelScatterSum
from .reactivation import LearnedGroupConv, SparseFeatureReactivation
from .sparse import GroupSparseConv2d, UnfinishedPruningError

__all__ = [
    'ChannelGather',
    'ChannelScatterSum',
    'GroupSparseConv2d',
    'Grouping',
    'LearnedGroupConv',
    'SelectiveLinear',
    'SparseFeatureReactivation',
    'SpatialGroupConv2d',
    'SqueezeExcite',
    'UnfinishedPruningError',
    'UnknownModuleError',
    'kept_units',
    'largest_divisor',
]

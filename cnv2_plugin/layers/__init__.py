"""The layers of the papers in plain PyTorch, each with a training form and an exact group-convolution form.

Begin with :mod:`.reactivation`, the two equations. Both layers are a :class:`.sparse.GroupSparseConv2d`, which has one
form at a time: :mod:`.masked` (and how it is pruned), :mod:`.packed` or :mod:`.condensed`.
"""

from .checks import UnfinishedPruningError
from .memory_format import SpatialGroupConv2d
from .permute import ChannelGather, ChannelScatterSum
from .reactivation import LearnedGroupConv, SparseFeatureReactivation
from .selective_linear import SelectiveLinear
from .sparse import GroupSparseConv2d
from .squeeze_excite import SqueezeExcite
from .units import kept_units

__all__ = [
    'ChannelGather',
    'ChannelScatterSum',
    'GroupSparseConv2d',
    'LearnedGroupConv',
    'SelectiveLinear',
    'SparseFeatureReactivation',
    'SpatialGroupConv2d',
    'SqueezeExcite',
    'UnfinishedPruningError',
    'kept_units',
]

"""The layers of the papers in plain PyTorch, each with a training form and an exact group-convolution form."""

from .permute import ChannelGather, ChannelScatterSum
from .reactivation import LearnedGroupConv, SparseFeatureReactivation
from .selective_linear import SelectiveLinear
from .sparse import GroupSparseConv2d, UnfinishedPruningError, kept_units
from .squeeze_excite import SqueezeExcite

__all__ = [
    'ChannelGather',
    'ChannelScatterSum',
    'GroupSparseConv2d',
    'LearnedGroupConv',
    'SelectiveLinear',
    'SparseFeatureReactivation',
    'SqueezeExcite',
    'UnfinishedPruningError',
    'kept_units',
]

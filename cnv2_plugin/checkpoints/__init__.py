"""Reading and writing checkpoints safely, and the files that others released."""

from .contents import Weights, find_state_dict, find_weights
from .io import CheckpointError, NeedsTrustError, atomic_path, load_checkpoint, save_checkpoint
from .official import ImportedCheckpoint, import_official
from .shufflenet import init_from_shufflenet, remap_shufflenet

__all__ = [
    'CheckpointError',
    'ImportedCheckpoint',
    'NeedsTrustError',
    'Weights',
    'atomic_path',
    'find_state_dict',
    'find_weights',
    'import_official',
    'init_from_shufflenet',
    'load_checkpoint',
    'remap_shufflenet',
    'save_checkpoint',
]

"""Reading and writing checkpoints safely."""

from .io import CheckpointError, atomic_path, find_state_dict, load_checkpoint, save_checkpoint

__all__ = ['CheckpointError', 'atomic_path', 'find_state_dict', 'load_checkpoint', 'save_checkpoint']

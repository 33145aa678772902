"""Staged sparsification: a schedule, what drives a model's layers along it, and what brings it to any network."""

from .condensed_training import (
    PackedTraining,
    condense_while_training,
    masked_optimizer_state,
    masked_state_dict,
    restore_masked,
)
from .schedule import SparsificationSchedule
from .sparsifier import StagedSparsifier

__all__ = [
    'PackedTraining',
    'SparsificationSchedule',
    'StagedSparsifier',
    'condense_while_training',
    'masked_optimizer_state',
    'masked_state_dict',
    'restore_masked',
]

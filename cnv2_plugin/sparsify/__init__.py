"""Staged sparsification: a schedule, and what drives a model's layers along it."""

from .schedule import SparsificationSchedule
from .sparsifier import StagedSparsifier

__all__ = ['SparsificationSchedule', 'StagedSparsifier']

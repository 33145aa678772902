"""Staged sparsification: a schedule, what drives a model's layers along it, and what brings it to any network."""

from .attach import AttachedSparsifier, attach_sparsifier
from .condensed_training import (
    PackedTraining,
    condense_while_training,
    masked_optimizer_state,
    masked_state_dict,
    restore_masked,
)
from .reactivate import AddedReactivation, add_reactivation
from .reactivate_report import ReactivationPlan, ReactivationReport
from .recalibration import recalibrate_norms
from .schedule import SparsificationSchedule
from .sparsifier import StagedSparsifier
from .surgery import (
    LatencyModel,
    LayerPlan,
    NetworkLatency,
    SkippedLayer,
    SurgeryReport,
    plan_learned_groups,
    to_learned_groups,
)

__all__ = [
    'AddedReactivation',
    'AttachedSparsifier',
    'LatencyModel',
    'LayerPlan',
    'NetworkLatency',
    'PackedTraining',
    'ReactivationPlan',
    'ReactivationReport',
    'SkippedLayer',
    'SparsificationSchedule',
    'StagedSparsifier',
    'SurgeryReport',
    'add_reactivation',
    'attach_sparsifier',
    'condense_while_training',
    'masked_optimizer_state',
    'masked_state_dict',
    'plan_learned_groups',
    'recalibrate_norms',
    'restore_masked',
    'to_learned_groups',
]

"""Staged sparsification: a schedule, what drives a model's layers along it, and what brings it to any network."""

from .attach import AttachedSparsifier, attach_sparsifier
from .packing import (
    PackedTraining,
    condense_while_training,
    masked_optimizer_state,
    masked_state_dict,
    pack_model,
    restore_masked,
)
from .recovery import distillation_loss, recalibrate_norms
from .schedule import SparsificationSchedule, cosine_with_rewind
from .sparsifier import StagedSparsifier
from .surgery.choice import LatencyModel
from .surgery.learned_groups import plan_learned_groups, to_learned_groups
from .surgery.reactivation import AddedReactivation, add_reactivation
from .surgery.report import (
    LayerPlan,
    NetworkLatency,
    ReactivationPlan,
    ReactivationReport,
    SkippedLayer,
    SurgeryReport,
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
    'cosine_with_rewind',
    'distillation_loss',
    'masked_optimizer_state',
    'masked_state_dict',
    'pack_model',
    'plan_learned_groups',
    'recalibrate_norms',
    'restore_masked',
    'to_learned_groups',
]

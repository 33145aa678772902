"""Surgery on networks that were not built with the layers of this package: learned groups and reactivation."""

from .choice import LatencyModel, finish_at_random
from .learned_groups import plan_learned_groups, to_learned_groups
from .reactivation import AddedReactivation, add_reactivation
from .report import LayerPlan, NetworkLatency, ReactivationPlan, ReactivationReport, SkippedLayer, SurgeryReport

__all__ = [
    'AddedReactivation',
    'LatencyModel',
    'LayerPlan',
    'NetworkLatency',
    'ReactivationPlan',
    'ReactivationReport',
    'SkippedLayer',
    'SurgeryReport',
    'add_reactivation',
    'finish_at_random',
    'plan_learned_groups',
    'to_learned_groups',
]

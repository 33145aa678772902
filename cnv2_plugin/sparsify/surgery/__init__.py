"""Learned group convolution for networks that were not built with it."""

from .choice import LatencyModel
from .convert import plan_learned_groups, to_learned_groups
from .report import LayerPlan, NetworkLatency, SkippedLayer, SurgeryReport

__all__ = [
    'LatencyModel',
    'LayerPlan',
    'NetworkLatency',
    'SkippedLayer',
    'SurgeryReport',
    'plan_learned_groups',
    'to_learned_groups',
]

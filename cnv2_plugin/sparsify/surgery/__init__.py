"""Learned group convolution for networks that were not built with it."""

from .convert import plan_learned_groups, to_learned_groups
from .plan import LayerPlan, SkippedLayer, SurgeryReport

__all__ = ['LayerPlan', 'SkippedLayer', 'SurgeryReport', 'plan_learned_groups', 'to_learned_groups']

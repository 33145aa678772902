"""Condensing, exporting, verifying and measuring trained models."""

from ..lowering import lower, lowered_forms, tune
from .condense import ClassifierCost, classifier_cost, condense, condense_state_dict
from .export import ExportReport, export_onnx
from .latency import RuntimeLatency
from .verify import VerificationError, VerifyReport, verify

__all__ = [
    'ClassifierCost',
    'ExportReport',
    'RuntimeLatency',
    'VerificationError',
    'VerifyReport',
    'classifier_cost',
    'condense',
    'condense_state_dict',
    'export_onnx',
    'lower',
    'lowered_forms',
    'tune',
    'verify',
]

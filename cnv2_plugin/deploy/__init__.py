"""Condensing, exporting, verifying and measuring trained models."""

from .condense import ClassifierCost, classifier_cost, condense, condense_state_dict
from .export import ExportReport, export_onnx
from .latency import RuntimeLatency
from .lower import lower, lowered_forms
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
    'verify',
]

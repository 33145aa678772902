"""Condensing, exporting, verifying and measuring trained models."""

from ..lowering import lower, lowered_forms, tune
from .condense import ClassifierCost, classifier_cost, condense, condense_state_dict
from .export import ExportReport, export_onnx
from .verify import VerificationError, VerifyReport, verify

__all__ = [
    'ClassifierCost',
    'ExportReport',
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

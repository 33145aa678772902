"""Condensing, exporting, verifying and measuring trained models."""

from .condense import condense
from .export import ExportReport, export_onnx
from .verify import VerificationError, VerifyReport, verify

__all__ = ['ExportReport', 'VerificationError', 'VerifyReport', 'condense', 'export_onnx', 'verify']

"""Whole detectors of MMDetection in one ONNX file."""

from ..adapters import UnsupportedModelError
from .compare import BoxReport, compare, paste
from .whole import export_detector, num_classes_of

UnsupportedDetectorError = UnsupportedModelError

__all__ = [
    'BoxReport',
    'UnsupportedDetectorError',
    'compare',
    'export_detector',
    'num_classes_of',
    'paste',
]

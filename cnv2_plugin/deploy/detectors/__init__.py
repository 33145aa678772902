"""Whole detectors of MMDetection in one ONNX file."""

from .compare import BoxReport, compare, paste
from .export import DetectorReport, export_detector
from .registry import UnsupportedDetectorError

__all__ = ['BoxReport', 'DetectorReport', 'UnsupportedDetectorError', 'compare', 'export_detector', 'paste']

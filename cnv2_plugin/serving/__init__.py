"""Answer questions about images with a deployed ONNX file: onnxruntime, NumPy and Pillow, and no PyTorch."""

from .answers import Classification, Detection, Segmentation
from .metadata import FileKindError
from .model import Model

__all__ = ['Classification', 'Detection', 'FileKindError', 'Model', 'Segmentation']

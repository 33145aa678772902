"""Native kernels for deployed networks on x86-64 and ARM64 processors: float32, inference.

``csrc`` holds the kernels, which know no toolkit; ``library`` loads them, ``compiler`` turns graphs into the programs
that they run, ``operator`` gives them to PyTorch, ``native_model`` puts them into models.
"""

from .library import KernelsMissingError, available, built_for, instruction_set, onnxruntime_library

__all__ = ['KernelsMissingError', 'available', 'built_for', 'instruction_set', 'onnxruntime_library']

"""Files of other runtimes, all made from the same lowering and checked against PyTorch before they get their names."""

from .base import RUNTIMES, Runtime, RuntimeReport, export_runtime, runtime_named

__all__ = ['RUNTIMES', 'Runtime', 'RuntimeReport', 'export_runtime', 'runtime_named']

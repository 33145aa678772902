"""What the figures are measured on: processor, versions, and how fast it multiplies and copies at best."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..deploy.timing import interleave


@dataclass(frozen=True)
class Roofline:
    """The best the machine does, measured.

    Attributes:
        mult_adds: multiply-adds a second, of a large float32 matrix product.
        bandwidth: bytes a second read and written, of copying more than the caches hold.
    """

    mult_adds: float
    bandwidth: float

    def limit(self, mult_adds: int, weight_bytes: int) -> float:
        """Milliseconds below which no implementation gets: all products at the best rate, all weights read once."""
        return max(mult_adds / self.mult_adds, weight_bytes / self.bandwidth) * 1e3


def roofline(rounds: int = 100) -> Roofline:
    """Measure with the threads that PyTorch has at the moment."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source = torch.randn(32 * 2**20)
    target = torch.empty_like(source)
    seconds = []
    for run in (lambda: torch.mm(a, b), lambda: target.copy_(source)):
        seconds.append(interleave({'': run}, rounds, warmup=1)[''].min / 1e3)
    return Roofline(1024**3 / seconds[0], 2 * source.numel() * 4 / seconds[1])


def machine() -> dict[str, Any]:
    """Processor and versions."""
    versions = {'python': platform.python_version()}
    for package in ('torch', 'onnxruntime', 'openvino', 'timm', 'torchvision'):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'system': platform.system(),
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'versions': versions,
    }


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()

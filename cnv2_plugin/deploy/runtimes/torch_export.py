"""A ``torch.export`` package: the lowered program without the Python classes that made it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..verify import as_runner
from .base import Loaded


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write ``.pt2``; ``metadata`` is its extra file ``metadata.json``."""
    content = io.BytesIO()  # a full disk ends PyTorch's own writer, and with it the process
    extra = {'metadata.json': json.dumps(metadata)} if metadata else None
    with torch.no_grad():
        torch.export.save(torch.export.export(lowered, (example,)), content, extra_files=extra)
    path.write_bytes(content.getvalue())


def load(path: Path) -> Loaded:
    """Run the loaded program eagerly."""
    return as_runner(torch.export.load(path).module().__call__)

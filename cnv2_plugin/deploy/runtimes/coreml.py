"""CoreML: converted here, run on Apple systems only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .base import as_text


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write an ``.mlpackage`` in float32; ``metadata`` is user-defined there."""
    import coremltools

    with torch.no_grad():
        exported = torch.export.export(lowered, (example,)).run_decompositions({})
    model = coremltools.convert(
        exported,
        minimum_deployment_target=coremltools.target.iOS15,
        compute_precision=coremltools.precision.FLOAT32,
    )
    model.user_defined_metadata.update({key: as_text(value) for key, value in (metadata or {}).items()})
    model.save(str(path))

"""CoreML: converted here, run on Apple systems only."""

from pathlib import Path

import torch
from torch import Tensor, nn


def write(lowered: nn.Module, path: Path, example: Tensor) -> None:
    """Write an ``.mlpackage`` in float32."""
    import coremltools

    with torch.no_grad():
        exported = torch.export.export(lowered, (example,)).run_decompositions({})
    model = coremltools.convert(
        exported,
        minimum_deployment_target=coremltools.target.iOS15,
        compute_precision=coremltools.precision.FLOAT32,
    )
    model.save(str(path))

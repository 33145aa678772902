"""ExecuTorch with the XNNPACK delegate."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .base import Loaded


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: object = None) -> None:
    """Write ``.pte``, which has no place for ``metadata``."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad():
        exported = torch.export.export(lowered, (example,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(program.buffer)


def load(path: Path) -> Loaded:
    """Run with ExecuTorch's Python bindings."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method('forward')
    return lambda x: [output.clone() for output in method.execute([x.contiguous()])]

"""Export to ONNX, checked against PyTorch in ONNX Runtime before the file gets its name."""

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor, nn

from ..checkpoints import atomic_path
from ..checkpoints.io import check_target
from ..graph.model_parts import replace_module
from ..graph.rewrite_gathers import level_table
from ..layers import ChannelGather, ChannelScatterSum
from ..layers.permute import ViewedChannelShuffle
from ..models.modes import in_eval
from .calibration import TIES, Images
from .lower import lower, lower_int8, lowered_forms
from .runtimes import onnxruntime
from .runtimes.base import check_float32, serving_metadata
from .verify import VerifyReport, verify


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the ONNX file.
        size: its bytes.
        opset: version of the standard operators.
        operators: number of nodes by operator.
        verification: ONNX Runtime against the given model.
        forms: chosen form of every layer that offers several.
    """

    path: Path
    size: int
    opset: int
    operators: dict[str, int]
    verification: VerifyReport
    forms: dict[str, str]


class GatherSum(nn.Module):
    """The index layer as gathers, one for each row that the most-updated channel sums: runtimes scatter slowly."""

    def __init__(self, scatter: ChannelScatterSum) -> None:
        super().__init__()
        self.rows = nn.ModuleList(map(ChannelGather, level_table(scatter.index, scatter.out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, K, H, W)`` to ``(N, C, H, W)``."""
        padded = torch.cat((x, torch.zeros_like(x[:, :1])), 1)
        return reduce(torch.add, [gather(padded) for gather in self.rows])


def export_onnx(
    model: nn.Module,
    path: Union[str, Path],
    input_size: tuple[int, int, int] = (3, 224, 224),
    batch: Union[int, Literal['dynamic']] = 'dynamic',
    optimize: bool = True,
    tolerance: float = 1e-5,
    metadata: Optional[dict[str, Any]] = None,
    output_names: Optional[list[str]] = None,
    choices: Optional[Mapping[str, str]] = None,
    native: bool = False,
    opset: int = onnxruntime.OPSETS[-1],
    int8: Optional[Images] = None,
) -> ExportReport:
    """Write a model as ONNX, with standard operators only unless ``native``.

    It goes through ``torch.export``, and through TorchScript before PyTorch 2.6.

    Args:
        model: classifier or backbone, condensed or not, on the CPU in float32; left as it is.
        path: file to write.
        input_size: ``(C, H, W)``.
        batch: ``'dynamic'``, or a fixed batch size.
        optimize: condense, and choose the fastest exact form of every layer for the runtime.
        tolerance: largest relative difference to PyTorch that is accepted.
        metadata: plain values stored in the file (arch, classes, normalisation).
        output_names: names of the outputs; ``logits``, or ``output_0`` and so on, by default.
        choices: implementation by layer in place of the one that the rules choose.
        native: put stages into operators of our own domain ``cnv2_plugin``, which run in the native kernels. A
            program that opens the file registers :func:`cnv2_plugin.kernels.onnxruntime_library` first.
        opset: version of the standard operators, 17 to 20.
        int8: with ``native``, batches of images to calibrate on, see :func:`lower`; the file is compared with the same
            rounding in PyTorch.

    Raises:
        KernelsMissingError: ``native``, and the kernels are not built.
        ValueError: ``batch``, ``input_size``, ``opset`` or ``choices`` does not fit, or the model is not in float32.
        UnfinishedPruningError: ``optimize``, and pruning is not finished.
        VerificationError: the file does not agree with PyTorch; nothing is written.
    """
    if batch != 'dynamic' and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch is {batch!r}; it takes 'dynamic' or a whole number of at least 1.")
    if len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(f'input_size is {tuple(input_size)}; it takes three positive numbers (C, H, W).')
    if opset not in onnxruntime.OPSETS:
        raise ValueError(f'opset is {opset}; it takes {onnxruntime.OPSETS[0]} to {onnxruntime.OPSETS[-1]}.')
    check_float32(model)
    check_target(path)
    reference = model
    if int8 is not None:
        if not native or choices:
            raise ValueError('int8 is for native=True, without choices; see quantize_onnx for standard operators.')
        lowered, reference = lower_int8(model, input_size, int8)
        exported, tolerance = in_eval(lowered), max(tolerance, TIES)
    elif native or optimize:
        exported = in_eval(lower(model, input_size, 'native' if native else 'onnxruntime', choices))
    else:
        exported = in_eval(_restated(model))
    count = 2 if batch == 'dynamic' else batch
    with atomic_path(path) as temporary:
        images = torch.randn(count, *input_size)
        proto = onnxruntime.to_proto(exported, images, batch == 'dynamic', output_names, optimize, opset=opset)
        onnxruntime.save(proto, temporary, serving_metadata(model, input_size, metadata))
        report = verify(reference, temporary, input_size, batch_size=count)
        report.check(tolerance, 'the ONNX file')
        size = temporary.stat().st_size
    operators = dict(Counter(node.op_type for node in proto.graph.node))
    return ExportReport(Path(path), size, proto.opset_import[0].version, operators, report, lowered_forms(exported))


def _restated(model: nn.Module) -> nn.Module:
    """A copy of a model whose index layers are gathers, and whose shuffles are views."""
    model = deepcopy(model)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, ChannelScatterSum):
            model = replace_module(model, name, GatherSum(module))
        elif isinstance(module, nn.ChannelShuffle):  # which TorchScript's exporter does not know
            model = replace_module(model, name, ViewedChannelShuffle(module.groups))
    return model

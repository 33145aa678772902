"""Export to ONNX, checked against PyTorch in ONNX Runtime before the file gets its name."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

import torch
from torch import Tensor, nn

from ..checkpoints import atomic_path
from ..checkpoints.io import check_target
from ..layers import ChannelScatterSum
from ..lowering import lower, lowered_forms
from .onnx_tracing import trace_to_proto
from .verify import VerifyReport, verify

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
NATIVE_DOMAIN = 'cnv2_plugin'
"""Domain of the operators that run in the native kernels."""


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
    """The index layer as gathers: one for each row that the most-updated channel sums.

    Runtimes gather fast and scatter slowly. Equal to :class:`ChannelScatterSum`.

    Args:
        scatter: the index layer to restate.
    """

    level_0: Tensor

    def __init__(self, scatter: ChannelScatterSum) -> None:
        super().__init__()
        rows = scatter.index.numel()
        multiplicity = torch.bincount(scatter.index, minlength=scatter.out_channels)
        self.levels = max(int(multiplicity.max()), 1)
        order = scatter.index.argsort(stable=True)
        channel = scatter.index[order]
        level = torch.arange(rows, device=order.device) - (multiplicity.cumsum(0) - multiplicity)[channel]
        table = torch.full((self.levels, scatter.out_channels), rows, device=order.device)
        table[level, channel] = order
        for i in range(self.levels):
            self.register_buffer(f'level_{i}', table[i].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, K, H, W)`` to ``(N, C, H, W)``."""
        padded = torch.cat((x, torch.zeros_like(x[:, :1])), 1)
        total = padded.index_select(1, self.level_0)
        for i in range(1, self.levels):
            total = total + padded.index_select(1, getattr(self, f'level_{i}'))
        return total


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
    processor: Optional[str] = None,
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
        choices: form by layer in place of the default table's, as :func:`cnv2_plugin.deploy.tune` gives it.
        native: put stages into operators of our own domain ``cnv2_plugin``, which run in the native kernels. Who opens
            the file registers :func:`cnv2_plugin.kernels.onnxruntime_library` first.
        processor: whose table of forms is used, ``'avx2'`` or ``'avx512'``; that of this machine by default. The file
            runs everywhere.

    Raises:
        KernelsMissingError: ``native``, and the kernels are not built.
        ValueError: ``batch``, ``input_size`` or ``choices`` does not fit.
        UnfinishedPruningError: ``optimize``, and pruning is not finished.
        VerificationError: the file does not agree with PyTorch; nothing is written.
    """
    if batch != 'dynamic' and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch is {batch!r}; it takes 'dynamic' or a whole number of at least 1.")
    if len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(f'input_size is {tuple(input_size)}; it takes three positive numbers (C, H, W).')
    check_target(path)
    import onnx

    if native:
        runtime_model = lower(model, input_size, 'native', choices, processor=processor).eval()
    else:
        runtime_model = for_runtime(model, optimize, input_size, choices, processor).eval()
    count = 2 if batch == 'dynamic' else batch
    proto = to_proto(runtime_model, torch.randn(count, *input_size), batch == 'dynamic', output_names)
    if optimize:
        pool_globally(proto)
    _strip(proto)
    onnx.helper.set_model_props(proto, {key: _text(value) for key, value in _metadata(model, metadata).items()})
    with atomic_path(path) as temporary:
        onnx.save(proto, str(temporary))
        onnx.checker.check_model(str(temporary), full_check=True)
        report = verify(model, temporary, input_size, batch_size=count)
        report.check(tolerance, 'the ONNX file')
        size = temporary.stat().st_size
    operators: dict[str, int] = {}
    for node in proto.graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return ExportReport(
        Path(path), size, proto.opset_import[0].version, operators, report, lowered_forms(runtime_model)
    )


def for_runtime(
    model: nn.Module, optimize: bool, input_size: tuple[int, int, int], choices: Optional[Mapping[str, str]] = None,
    processor: Optional[str] = None,
) -> nn.Module:  # fmt: skip
    """A copy of a model in the form that is exported."""
    if optimize:
        return lower(model, input_size, choices=choices, processor=processor)
    model = deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ChannelScatterSum):
                setattr(parent, name, GatherSum(child))
    return model


def to_proto(
    model: nn.Module, example: Tensor, dynamic: bool, output_names: Optional[list[str]] = None
) -> 'ModelProto':
    """A model that is ready for its runtime, as ONNX.

    Args:
        model: in the form that is exported.
        example: ``(N, C, H, W)``.
        dynamic: take any number of images.
        output_names: ``logits``, or ``output_0`` and so on, by default.
    """
    with torch.no_grad():
        outputs = model(example)
    if output_names is None:
        output_names = ['logits'] if isinstance(outputs, Tensor) else [f'output_{i}' for i in range(len(outputs))]
    if torch.__version__ < '2.6':
        with _quiet():
            return trace_to_proto(model, example, dynamic, output_names, OPSET, NATIVE_DOMAIN)
    shapes = ({0: torch.export.Dim('batch', min=1)},) if dynamic else None
    with _quiet():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, input_names=['input'], output_names=output_names,
            dynamic_shapes=shapes, optimize=True, verbose=False, custom_translation_table=_own_operators(),
        )  # fmt: skip
    if program is None:
        raise RuntimeError('torch.onnx.export gave no program.')
    return program.model_proto


def _own_operators() -> dict:
    """How the exporter writes the native kernels: one node of our domain."""
    import onnxscript
    from onnx.defs import OpSchema

    taken = (('images', 'tensor(float)'), ('weights', 'tensor(float)'), ('plan', 'tensor(int32)'))
    schema = OpSchema(
        'NativeStages', NATIVE_DOMAIN, 1,
        inputs=[OpSchema.FormalParameter(*parameter) for parameter in taken],
        outputs=[OpSchema.FormalParameter('result', 'tensor(float)')],
    )  # fmt: skip
    node = onnxscript.values.Op(onnxscript.values.Opset(NATIVE_DOMAIN, 1), 'NativeStages', schema)

    def native_stages(images: Any, weights: Any, plan: Any, shape: Sequence[int]) -> Any:
        return node(images, weights, plan)

    return {torch.ops.cnv2_plugin.native_stages.default: native_stages}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes to itself."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: 'ModelProto') -> None:
    """Drop the exporter's notes on every node, which hold paths of this machine, and constants that nothing reads."""
    for item in [*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del item.metadata_props[:]
        item.doc_string = ''
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    read = {name for node in proto.graph.node for name in node.input} | {output.name for output in proto.graph.output}
    for unused in [item for item in proto.graph.initializer if item.name not in read]:
        proto.graph.initializer.remove(unused)


def pool_globally(proto: 'ModelProto') -> None:
    """Name means over height and width for what they are: runtimes have a faster kernel for GlobalAveragePool."""
    from onnx import numpy_helper

    constants = {item.name: item for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != 'ReduceMean' or len(node.input) != 2 or node.input[1] not in constants:
            continue
        axes = sorted(numpy_helper.to_array(constants[node.input[1]]).flatten().tolist())
        keeps = next((a.i for a in node.attribute if a.name == 'keepdims'), 1)
        if axes in ([2, 3], [-2, -1]) and keeps:
            node.op_type = 'GlobalAveragePool'
            del node.input[1:], node.attribute[:]


def _metadata(model: nn.Module, metadata: Optional[dict[str, Any]]) -> dict[str, Any]:
    config = getattr(model, 'pretrained_cfg', None) or {}
    names = {
        'architecture': 'arch',
        'mean': 'mean',
        'std': 'std',
        'interpolation': 'interpolation',
        'crop_pct': 'crop_pct',
    }
    found = {names[key]: config[key] for key in names if config.get(key) is not None}
    if hasattr(model, 'num_classes'):
        found['num_classes'] = model.num_classes
    return {**found, **(metadata or {})}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

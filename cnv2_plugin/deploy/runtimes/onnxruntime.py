"""ONNX: written by PyTorch's exporter, run by ONNX Runtime."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Optional, Union

import torch
from torch import Tensor, nn

from ..timing import onnx_session
from .base import Loaded, as_text

if TYPE_CHECKING:
    from onnx import ModelProto

OPSETS = range(17, 21)
"""Versions of the standard operators that files can have; the last one by default."""
NATIVE_DOMAIN = 'cnv2_plugin'
"""Domain of the operators that run in the native kernels."""


def write(lowered: nn.Module, path: Path, example: Tensor, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write ``.onnx``; ``metadata`` is in its properties."""
    save(to_proto(lowered, example), path, metadata)


def save(proto: 'ModelProto', path: Path, metadata: Optional[Mapping[str, Any]] = None) -> None:
    """Write and check a model, with plain values about it."""
    import onnx

    onnx.helper.set_model_props(proto, {key: as_text(value) for key, value in (metadata or {}).items()})
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def load(model: Union[Path, bytes], threads: int = 1) -> Loaded:
    """Run in ONNX Runtime on the CPU with all its graph optimisations."""
    session = onnx_session(model, threads)
    name = session.get_inputs()[0].name

    def run(x: Tensor, **others: Tensor) -> list[Tensor]:
        fed = {name: x.numpy(), **{other: value.numpy() for other, value in others.items()}}
        return [torch.from_numpy(output) for output in session.run(None, fed)]

    return run


def to_proto(
    model: nn.Module,
    example: Tensor,
    dynamic: Union[bool, dict[int, str]] = False,
    output_names: Optional[list[str]] = None,
    pool: bool = True,
    trace: bool = torch.__version__ < '2.6',
    opset: int = OPSETS[-1],
    defaults: Optional[Mapping[str, Tensor]] = None,
) -> 'ModelProto':
    """An ONNX model of a lowered or condensed module.

    Args:
        model: the module.
        example: images ``(N, C, H, W)``.
        dynamic: take any number of images; axes of the input that may vary, by number, in a traced model.
        output_names: ``logits``, or ``output_0`` and so on, by default.
        pool: write means over height and width as GlobalAveragePool.
        trace: go through TorchScript, which takes a small part of the time, as it always does before PyTorch 2.6 (the
            other exporter takes neither dynamic shapes nor operators of our own there) and before version 18.
        opset: version of the standard operators.
        defaults: of a traced model's further inputs, which hold where the file is not given any.
    """
    with torch.no_grad():
        outputs = model(example)
    if output_names is None:
        output_names = ['logits'] if isinstance(outputs, Tensor) else [f'output_{i}' for i in range(len(outputs))]
    export = partial(_trace, defaults=defaults or {}) if trace or opset < 18 else _export
    with _quiet():
        proto = export(model, example, {0: 'batch'} if dynamic is True else dynamic or {}, output_names, opset)
    if pool:
        _pool_globally(proto)
    _strip(proto)
    return proto


def _export(model: nn.Module, example: Tensor, dynamic: dict, output_names: list[str], opset: int) -> 'ModelProto':
    """Go through ``torch.export``."""
    import onnxscript
    from onnx.defs import OpSchema

    parameters = (('images', 'tensor(float)'), ('weights', 'tensor(float)'), ('plan', 'tensor(int32)'))
    schema = OpSchema(
        'NativeStages', NATIVE_DOMAIN, 1,
        inputs=[OpSchema.FormalParameter(*parameter) for parameter in parameters],
        outputs=[OpSchema.FormalParameter('result', 'tensor(float)')],
    )  # fmt: skip
    node = onnxscript.values.Op(onnxscript.values.Opset(NATIVE_DOMAIN, 1), 'NativeStages', schema)

    def native_stages(images: Any, weights: Any, plan: Any, shape: Sequence[int]) -> Any:
        return node(images, weights, plan)

    shapes = ({0: torch.export.Dim('batch', min=1)},) if dynamic else None
    program = torch.onnx.export(
        model, (example,), dynamo=True, opset_version=opset, input_names=['input'], output_names=output_names,
        dynamic_shapes=shapes, optimize=True, verbose=False,
        custom_translation_table={torch.ops.cnv2_plugin.native_stages.default: native_stages},
    )  # fmt: skip
    if program is None:
        raise RuntimeError('torch.onnx.export gave no program.')
    return program.model_proto


def _trace(
    model: nn.Module,
    example: Tensor,
    dynamic: dict,
    output_names: list[str],
    opset: int,
    defaults: Mapping[str, Tensor],
) -> 'ModelProto':
    """Go through TorchScript."""
    import onnx

    # A function without annotations: PyTorch 2.4 looks for classes of its own among them.
    torch.onnx.register_custom_op_symbolic(
        'cnv2_plugin::native_stages', lambda g, *inputs: _native_stages(g, *inputs), opset
    )
    file: Any = io.BytesIO()
    old: dict[str, Any] = {} if torch.__version__ < '2.5' else dict(dynamo=False)
    try:
        torch.onnx.export(
            model, (example, *defaults.values()), file, opset_version=opset, input_names=['input', *defaults],
            output_names=output_names, dynamic_axes={
                'input': dynamic, **{name: {0: 'batch'} for name in output_names if 0 in dynamic},
                **{name: {0: 'images'} for name in defaults}},
            **old,
        )  # fmt: skip
    finally:
        torch.onnx.register_custom_op_symbolic('cnv2_plugin::native_stages', _refuse_native, opset)
    proto = onnx.load_model_from_string(file.getvalue())
    read = {name for node in proto.graph.node for name in node.input}
    for item in [item for item in proto.graph.input if item.name in defaults]:
        if item.name in read:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(defaults[item.name].numpy(), item.name))
        else:
            proto.graph.input.remove(item)
    return proto


def _native_stages(g: Any, images: Any, weights: Any, plan: Any, shape: Any) -> Any:
    """A node with a type, without which PyTorch warns of shapes that it cannot infer."""
    return g.op(f'{NATIVE_DOMAIN}::NativeStages', images, weights, plan).setType(images.type().with_sizes([None] * 4))


def _refuse_native(*_: object) -> NoReturn:
    raise RuntimeError(
        'torch.onnx.export cannot write native stages as ONNX; use export_onnx(model, path, native=True).'
    )


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


def _pool_globally(proto: 'ModelProto') -> None:
    """Replace means over height and width by GlobalAveragePool, for which runtimes have a faster kernel."""
    from onnx import numpy_helper

    constants = {item.name: item for item in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != 'ReduceMean':
            continue
        axes = next((sorted(a.ints) for a in node.attribute if a.name == 'axes'), None)  # before version 18
        if len(node.input) == 2 and node.input[1] in constants:
            axes = sorted(numpy_helper.to_array(constants[node.input[1]]).flatten().tolist())
        keeps = next((a.i for a in node.attribute if a.name == 'keepdims'), 1)
        if axes in ([2, 3], [-2, -1]) and keeps:
            node.op_type = 'GlobalAveragePool'
            del node.input[1:], node.attribute[:]


def metadata_of(session: Any) -> dict[str, Any]:
    """The plain values stored in the file of a session."""

    def value_of(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {key: value_of(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}

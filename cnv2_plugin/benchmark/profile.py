"""Where the time of a native file goes: the instructions of its programs, timed one by one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from ..deploy.runtimes.onnxruntime import NATIVE_DOMAIN
from ..deploy.timing import Runner, interleave, onnx_session
from ..kernels.library import profile as profile_program
from .latency import pinned

KINDS = {
    'Select': '1x1 convolution', 'Spatial': '3x3 convolution', 'Excite': 'squeeze-and-excitation', 'Pool': 'pooling',
    'ExciteBytes': 'squeeze-and-excitation', 'Split': 'splitting',
    'Maximum': 'maximum pooling', 'Normalise': 'normalisation', 'Average': 'global pooling',
    'Linear': 'linear layer', 'Load': 'reading images', 'Store': 'writing the result', 'Zero': 'zeroing',
}  # fmt: skip
"""What instructions do, by their names in ``csrc/opcodes.h``."""
REST = 'everything else in ONNX Runtime'


@dataclass(frozen=True)
class Share:
    """What the instructions of one kind take.

    Attributes:
        kind: what they do.
        count: how many there are; 0 for what no instruction takes.
        milliseconds: least time of each over the rounds, added up.
        share: of the whole file's least time.
    """

    kind: str
    count: int
    milliseconds: float
    share: float


def profile(file: Union[str, Path], input_size: tuple[int, int, int] = (3, 224, 224), rounds: int = 40) -> list[Share]:
    """Measure what each kind of instruction takes in a native ONNX file: one image, one thread, those with most first.

    ``input_size`` is ``(C, H, W)``, where the file leaves them open.

    Raises:
        ValueError: the file holds no native operators, or is no ONNX file.
    """
    import onnx

    try:
        proto = onnx.load(str(file))
    except Exception as error:  # whatever protobuf raises
        raise ValueError(f'{file} cannot be read as an ONNX file ({error}); give one written with --native.') from error
    nodes = [node for node in proto.graph.node if node.domain == NATIVE_DOMAIN]
    if not nodes:
        raise ValueError(f'{file} holds no native operators, so there are no instructions to time; write it --native.')
    given = proto.graph.input[0]
    sizes = [1, *input_size]
    shape = [dim.dim_value or size for dim, size in zip(given.type.tensor_type.shape.dim, sizes)]
    feed = {given.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    with pinned(1):
        session = onnx_session(Path(file))
        measured: list[list[list[tuple[str, float]]]] = []
        runners: dict[Any, Runner] = {REST: lambda: session.run(None, feed)}
        for program in _programs(proto, nodes, feed):
            measured.append([])
            runners[len(measured)] = lambda given=program, into=measured[-1]: into.append(profile_program(*given))
        whole = interleave(runners, rounds, clock=time.process_time)[REST].min
    total: dict[str, list[float]] = {}
    for instruction in (instruction for each in measured for instruction in zip(*each)):
        (kind, *_), times = zip(*instruction)
        total.setdefault(KINDS.get(kind, kind), []).append(min(times))
    shares = [Share(kind, len(each), sum(each), sum(each) / whole) for kind, each in total.items()]
    shares.sort(key=lambda share: -share.milliseconds)
    rest = max(whole - sum(share.milliseconds for share in shares), 0.0)
    return [*shares, Share(REST, 0, rest, rest / whole)]


def _programs(proto: Any, nodes: list, feed: dict[str, np.ndarray]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Program, weights and images of each native operator."""
    import onnx

    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    names = [node.input[0] for node in nodes]
    graph_inputs = {value.name for value in proto.graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in graph_inputs]
    if inner:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in inner)
        feed = {**feed, **dict(zip(inner, onnx_session(proto.SerializeToString()).run(inner, feed)))}
    for node, name in zip(nodes, names):
        weights, plan = (torch.from_numpy(onnx.numpy_helper.to_array(stored[key]).copy()) for key in node.input[1:3])
        yield plan, weights, torch.from_numpy(np.ascontiguousarray(feed[name]))

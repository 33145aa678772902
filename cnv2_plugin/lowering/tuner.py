"""Measuring which form is fastest on this machine, part by part."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

import torch
from torch import Tensor, nn

from ..checkpoints import atomic_path
from ..models.condense import condense
from .describe import describe
from .forms import FORMS, role, with_forms
from .graph import Graph, pair
from .onnx_graph import to_onnx
from .openvino_core import openvino_core
from .parts import Part, layer_name, parts
from .table import default_choices, layer_of
from .timing import Progress, interleave, onnx_session

if TYPE_CHECKING:
    from numpy import ndarray
    from onnx import ModelProto

ROUNDS = 15
MARGIN = 0.98
"""A form replaces the one chosen so far only if it takes less than this share of its time, twice in a row."""


def tune(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    runtime: str = 'onnxruntime',
    batch: int = 1,
    threads: int = 1,
    budget: float = 300.0,
    cache: Optional[Union[str, Path]] = None,
    progress: Optional[Progress] = None,
    example: Optional[Tensor] = None,
    max_growth: float = 0.2,
) -> dict[str, str]:
    """Measure the forms of every layer in a runtime and return the fastest, for ``lower(model, choices=...)``.

    Starts from the table's choice. In each part one kind of layer after the other is tried in all of its forms, first
    all such layers alike, then, while time is left, layer by layer.

    Args:
        model: finished model; left as it is.
        input_size: ``(C, H, W)``.
        runtime: ``'onnxruntime'`` or ``'openvino'``.
        batch: images in a call.
        threads: threads of the runtime.
        budget: seconds to spend; what is best by then is returned.
        cache: JSON file that remembers results by runtime, processor and shapes; read and updated.
        progress: called with a short text now and then.
        example: input to find the shapes with, for models that do not take ``(1, *input_size)``.
        max_growth: share of the condensed parameters by which zeros filled in may enlarge the model.

    Raises:
        ValueError: an unknown runtime, or a cache file that is none.
        ImportError: the runtime is not installed.
    """
    if runtime not in MEASURED:
        raise ValueError(f'forms can be tuned for {" and ".join(MEASURED)}, not for {runtime!r}.')
    condensed = condense(model).eval()
    memory = _Cache(cache)
    deadline = time.monotonic() + budget
    allowance = max_growth * sum(p.numel() for p in condensed.parameters())
    found = parts(condensed, input_size, example, whole=False)
    choices: dict[str, str] = {}
    for i, part in enumerate(found):
        graph = describe(part.module, part.input_shape[1])
        shape = (batch, *part.input_shape[1:])
        key = _key(graph, part, shape, runtime, threads)
        best = memory.get(key)
        if best is None:
            share = (deadline - time.monotonic()) / (len(found) - i)
            measure = partial(_measure, shape=shape, runtime=runtime, threads=threads)
            search = _Search(graph, part, runtime, measure, time.monotonic() + share, allowance, progress)
            best = search.run()
            if search.complete:
                memory.put(key, best)
        allowance -= with_forms(graph, best)[0].parameters() - graph.parameters()
        choices.update({layer_name(part.name, site): form for site, form in best.items()})
    return choices


class _Search:
    """Coordinate descent over the forms of one part's layers."""

    def __init__(
        self, graph: Graph, part: Part, runtime: str, measure: Callable[[Mapping[str, Graph]], dict[str, float]],
        deadline: float, allowance: float, progress: Optional[Progress],
    ) -> None:  # fmt: skip
        self.graph, self.part, self.measure, self.deadline = graph, part, measure, deadline
        self.progress = progress or (lambda text: None)
        self.most = graph.parameters() + allowance
        self.best = default_choices(graph, pair(part.input_shape[2:]), runtime)
        self.kinds: dict[str, list[str]] = {}
        for node in graph.sites():
            self.kinds.setdefault(role(node, graph), []).append(node.site)
        self.complete = True

    def run(self) -> dict[str, str]:
        """The fastest forms found before the deadline."""
        for kind in ('spatial', 'select', 'reactivate'):
            self._try(kind, self.kinds.get(kind, []))
        for kind, sites in self.kinds.items():
            if len(sites) > 1:
                for site in sites:
                    self._try(kind, [site])
        return self.best

    def _try(self, kind: str, sites: list[str]) -> None:
        if not sites:
            return
        if time.monotonic() > self.deadline:
            self.complete = False
            return
        candidates, seen = {'': with_forms(self.graph, self.best)[0]}, [self.best]
        for form in FORMS[kind]:
            wanted = {**self.best, **dict.fromkeys(sites, form)}
            rewritten, taken = with_forms(self.graph, wanted)
            if taken not in seen and rewritten.parameters() <= self.most:
                seen.append(taken)
                candidates[form] = rewritten
        if len(candidates) == 1:
            return
        times = self.measure(candidates)
        fastest = min(times, key=times.__getitem__)
        if fastest and times[fastest] < MARGIN * times['']:
            times = self.measure({name: candidates[name] for name in ('', fastest)})
        if fastest and times[fastest] < MARGIN * times['']:
            self.best = seen[list(candidates).index(fastest)]
        name = layer_name(self.part.name, sites[0]) if len(sites) == 1 else f'{self.part.name} ({kind})'
        self.progress(f'{name}: {self.best[sites[0]]} ({times[fastest] * 1e3:.2f} ms, was {times[""] * 1e3:.2f})')


def _measure(candidates: Mapping[str, Graph], shape: tuple[int, ...], runtime: str, threads: int) -> dict[str, float]:
    """Least seconds of each graph in interleaved rounds."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    runners = {name: MEASURED[runtime](to_onnx(graph, shape), images, threads) for name, graph in candidates.items()}
    return {name: timing.min / 1e3 for name, timing in interleave(runners, ROUNDS, warmup=2).items()}


def _onnxruntime(proto: 'ModelProto', images: 'ndarray', threads: int) -> Callable[[], object]:
    session = onnx_session(proto.SerializeToString(), threads)
    return lambda: session.run(None, {'input': images})


def _openvino(proto: 'ModelProto', images: 'ndarray', threads: int) -> Callable[[], object]:
    core = openvino_core()
    settings = {'INFERENCE_NUM_THREADS': threads, 'NUM_STREAMS': 1, 'INFERENCE_PRECISION_HINT': 'f32'}
    request = core.compile_model(core.read_model(proto.SerializeToString()), 'CPU', settings).create_infer_request()
    return lambda: request.infer([images])


MEASURED: dict[str, Callable] = {'onnxruntime': _onnxruntime, 'openvino': _openvino}


def _key(graph: Graph, part: Part, shape: tuple[int, ...], runtime: str, threads: int) -> str:
    sizes = graph.sizes(*shape[2:])
    layers = [(node.site, str(layer_of(graph, node, sizes[node.id]))) for node in graph.sites()]
    description = [runtime, version(runtime), platform.machine(), _processor(), threads, shape, layers]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()[:32]


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if not cpuinfo.exists():
        return platform.processor()
    wanted = ('model name', 'flags', 'Features')
    return ''.join(line for line in cpuinfo.read_text().split('\n\n')[0].splitlines() if line.startswith(wanted))


class _Cache:
    """Results by key in a JSON file, or nowhere."""

    def __init__(self, path: Optional[Union[str, Path]]) -> None:
        self.path = None if path is None else Path(path)
        self.content: dict[str, dict[str, str]] = {}
        if self.path is not None and self.path.exists():
            try:
                self.content = json.loads(self.path.read_text())
            except ValueError as error:
                raise ValueError(f'{self.path} is no tuning cache; delete it or give another file.') from error
            if not isinstance(self.content, dict) or not all(isinstance(v, dict) for v in self.content.values()):
                raise ValueError(f'{self.path} is no tuning cache; delete it or give another file.')

    def get(self, key: str) -> Optional[dict[str, str]]:
        return self.content.get(key)

    def put(self, key: str, choices: dict[str, str]) -> None:
        self.content[key] = choices
        if self.path is not None:
            with atomic_path(self.path) as temporary:
                Path(temporary).write_text(json.dumps(self.content, indent=1, sort_keys=True))

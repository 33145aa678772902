"""Latency of the forms of a model in several runtimes, measured in interleaved rounds."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .benchmark_forms import FORMS
from .benchmark_runtimes import RUNTIMES, Runner

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """Latency of one call in milliseconds over all rounds."""

    min: float
    median: float
    max: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> 'Timing':
        """Summarise measured seconds."""
        return cls(min(seconds) * 1e3, statistics.median(seconds) * 1e3, max(seconds) * 1e3, len(seconds))


@dataclass(frozen=True)
class Measurement:
    """One row of the benchmark.

    Attributes:
        model: name of the model.
        form: see ``benchmark_forms.FORMS``.
        runtime: see ``benchmark_runtimes.RUNTIMES``.
        batch: images in a call.
        threads: threads of the runtime.
        timing: latency.
        size: bytes of the exported file, or of the parameters where the runtime has none.
    """

    model: str
    form: str
    runtime: str
    batch: int
    threads: int
    timing: Timing
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def interleave(
    runners: Mapping[Any, Runner], rounds: int = 40, warmup: int = 5, progress: Optional[Progress] = None
) -> dict[Any, Timing]:
    """Time every runner once a round, in turn, so that a drift of the machine meets all alike.

    Args:
        runners: callables without arguments.
        rounds: measured rounds.
        warmup: calls of each runner before the first round.
        progress: called with a short text now and then.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds is {rounds}; a measurement takes at least 1 round.')
    for run in runners.values():
        for _ in range(warmup):
            run()
    seconds: dict[Any, list[float]] = {key: [] for key in runners}
    for i in range(rounds):
        for key, run in runners.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
        if progress and (i + 1) % max(1, rounds // 10) == 0:
            progress(f'round {i + 1} of {rounds}')
    return {key: Timing.of(values) for key, values in seconds.items()}


def benchmark(
    models: Mapping[str, nn.Module],
    forms: Sequence[str] = ('training', 'condensed'),
    runtimes: Sequence[str] = ('eager', 'onnxruntime'),
    input_size: tuple[int, int, int] = (3, 224, 224),
    batch: int = 1,
    threads: int = 1,
    rounds: int = 40,
    warmup: int = 5,
    progress: Optional[Progress] = None,
) -> list[Measurement]:
    """Measure every form of every model in every runtime, all in the same interleaved rounds.

    Args:
        models: finished models in training form, by name; left as they are.
        forms: names of forms.
        runtimes: names of runtimes.
        input_size: ``(C, H, W)``.
        batch: images in a call.
        threads: threads of a runtime; the process is bound to as many processors meanwhile.
        rounds: measured rounds.
        warmup: unmeasured calls before them.
        progress: called with a short text now and then.

    Raises:
        ValueError: an unknown form or runtime, or a count below 1.
    """
    _check_names('form', forms, FORMS)
    _check_names('runtime', runtimes, RUNTIMES)
    if batch < 1 or threads < 1:
        raise ValueError(f'batch is {batch} and threads is {threads}; both take whole numbers of at least 1.')
    images = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0))
    runners, sizes = {}, {}
    with TemporaryDirectory() as folder, pinned(threads):
        for name, model in models.items():
            for form in forms:
                module = FORMS[form](model)
                for runtime in runtimes:
                    if progress:
                        progress(f'preparing {name}, {form}, {runtime}')
                    key = (name, form, runtime)
                    path = Path(folder) / f'{name}-{form}'
                    runners[key], sizes[key] = RUNTIMES[runtime](module, form, images, threads, path)
        timings = interleave(runners, rounds, warmup, progress)
    return [Measurement(*key, batch, threads, timing, sizes[key]) for key, timing in timings.items()]


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Bind this process to ``threads`` processors, and PyTorch to as many threads, for a while."""
    before = torch.get_num_threads()
    affinity = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
    torch.set_num_threads(threads)
    if affinity:
        os.sched_setaffinity(0, sorted(affinity)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if affinity:
            os.sched_setaffinity(0, affinity)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {'python': platform.python_version(), 'torch': torch.__version__}
    for package in ('onnxruntime', 'openvino'):
        try:
            from importlib.metadata import version

            versions[package] = version(package)
        except ImportError:
            continue
    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'system': platform.system(),
        'instructions': torch.backends.cpu.get_cpu_capability(),
        'versions': versions,
    }


def random_finished(model: nn.Module, seed: int = 0) -> nn.Module:
    """Finish the pruning of an untrained model and give its normalisations random statistics, in place.

    Latency does not depend on the values; masks, and with them the forms, do depend on which weights are small.
    """
    from ..layers import GroupSparseConv2d

    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GroupSparseConv2d) and not module.deploy:
                module.prune_to(module.num_stages)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                if module.affine:
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model.eval()


def _check_names(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f'{what} {", ".join(unknown) or "list is empty"}: choose from {", ".join(known)}.')


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()

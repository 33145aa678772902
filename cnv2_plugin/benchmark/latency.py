"""Latency of the forms of a model in several runtimes, measured in interleaved rounds."""

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..deploy.timing import Progress, Timing, interleave
from ..graph.choice import RULES
from ..layers import GroupSparseConv2d
from ..models.condense import condense
from ..models.multiply_adds import count_mult_adds
from .forms import EARLIER_NAMES, FORMS
from .runtimes import RUNTIMES, Prepared, peak_memory

NATIVE_RUNTIMES = ('eager', 'compile', 'onnxruntime', 'torch_export')
PEER = 'as published'
"""Form of networks that are not ours."""


@dataclass(frozen=True)
class Measurement:
    """One row of the benchmark.

    Attributes:
        model: name of the model.
        form: see ``forms.FORMS``; ``PEER`` for networks that are not ours.
        runtime: see ``runtimes.RUNTIMES``.
        batch: images in a call.
        threads: threads of the runtime.
        height: of the images.
        timing: latency.
        size: bytes of the exported file, or of parameters and buffers where the runtime has none.
        mult_adds: multiply-adds of convolutions and linear layers for one image, zeros filled in included.
        memory: peak memory of a fresh process that loads and runs the ONNX file, in bytes; None where not measured.
    """

    model: str
    form: str
    runtime: str
    batch: int
    threads: int
    height: int
    timing: Timing
    size: int
    mult_adds: int
    memory: Optional[int] = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
    *,
    peers: Optional[Mapping[str, nn.Module]] = None,
    folder: Optional[Union[str, Path]] = None,
    memory: bool = False,
    warmup_each_round: int = 0,
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
        peers: other networks, measured as they are.
        folder: where exported files are kept and found again; a temporary folder by default.
        memory: also measure the peak memory of ONNX Runtime.
        warmup_each_round: unmeasured calls right before each measured one, see :func:`interleave`.

    Raises:
        ValueError: an unknown form or runtime, or a count below 1.
    """
    forms = [EARLIER_NAMES.get(form, form) for form in forms]
    _check_names('form', forms, FORMS)
    _check_names('runtime', runtimes, RUNTIMES)
    if 'native' in forms and not set(runtimes) <= set(NATIVE_RUNTIMES):
        raise ValueError(
            f'the native form runs in {", ".join(NATIVE_RUNTIMES)} only; leave out the other runtimes or the form.'
        )
    if batch < 1 or threads < 1:
        raise ValueError(f'batch is {batch} and threads is {threads}; both take whole numbers of at least 1.')
    report = progress or (lambda text: None)
    images = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0))
    prepared: dict[tuple[str, str, str], Prepared] = {}
    work: dict[tuple[str, str], int] = {}
    with TemporaryDirectory() as temporary, pinned(threads):
        place = Path(folder or temporary)
        place.mkdir(parents=True, exist_ok=True)
        for name, form, runtime, module in _contenders(models, peers or {}, forms, runtimes, input_size):
            report(f'preparing {name}, {form}, {runtime}')
            counted = condense(models[name]) if form == 'native' else module
            work[name, form] = count_mult_adds(counted, input_size)
            prepare = RUNTIMES[runtime]
            prepared[name, form, runtime] = prepare(module, images, threads, place, form in ('lowered', 'native'))
        timings = interleave(
            {key: item.run for key, item in prepared.items()}, rounds, warmup=warmup, progress=report,
            warmup_each_round=warmup_each_round,
        )  # fmt: skip
        peaks = {}
        if memory:
            for key, item in prepared.items():
                if key[2] == 'onnxruntime':
                    report(f'peak memory of {key[0]}, {key[1]}')
                    peaks[key] = peak_memory(item.file, tuple(images.shape))
    return [
        Measurement(*key, batch, threads, input_size[1], timing, prepared[key].size, work[key[:2]], peaks.get(key))
        for key, timing in timings.items()
    ]


def _contenders(models, peers, forms, runtimes, input_size) -> Iterator[tuple[str, str, str, nn.Module]]:
    for name, model in models.items():
        for form in forms:
            for runtime in runtimes:
                rules = runtime if runtime in RULES else 'onnxruntime'
                yield name, form, runtime, FORMS[form](model, input_size, rules)
    for name, model in peers.items():
        for runtime in runtimes:
            yield name, PEER, runtime, model


def exponent(sizes: Sequence[float], milliseconds: Sequence[float]) -> float:
    """Slope of log latency over log size: 1 where latency grows in proportion, by least squares.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f'an exponent takes at least two sizes, but there are {len(sizes)}.')
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in milliseconds]).slope


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


def random_finished(model: nn.Module, seed: int = 0) -> nn.Module:
    """Finish the pruning of an untrained model and give its normalisations random statistics, in place.

    Latency does not depend on the values; masks, and with them the forms, do depend on which weights are small.
    """
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

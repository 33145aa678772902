"""Time and memory of a training step: our forms, and the authors' form restated."""

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnv2_plugin.deploy.timing import interleaved_seconds
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import pack_model

from .authors_form import restated


def masked(model: nn.Module) -> nn.Module:
    """A copy in our masked form, after the last stage; earlier ones cost the same."""
    model = deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d) and not layer.deploy:
            layer.prune_to(layer.num_stages)
    return model


def authors(model: nn.Module) -> nn.Module:
    """A copy in the authors' form."""
    return restated(masked(model))


def condensed(model: nn.Module) -> nn.Module:
    """A copy in the form of the optimisation half that ``pack_model`` makes."""
    model = masked(model)
    pack_model(model)
    return model


TRAINING_FORMS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    'authors': authors,
    'masked': masked,
    'condensed': condensed,
}

MEMORY_FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


@dataclass(frozen=True)
class StepCost:
    """Cost of one training step: forward, backward and SGD with Nesterov momentum.

    Attributes:
        model: name of the model.
        form: see ``TRAINING_FORMS``.
        memory_format: see ``MEMORY_FORMATS``.
        batch: images in a step.
        seconds: median processor time of a step over the rounds, in all threads.
        ratio: median over the rounds of the baseline's time over this form's, both of one round: above 1 is faster.
        peak_bytes: largest memory held at once by what forward and backward allocate, without parameters, gradients
            and optimiser.
        peak_bytes_checkpointed: the same with gradient checkpointing.
    """

    model: str
    form: str
    memory_format: str
    batch: int
    seconds: float
    ratio: float
    peak_bytes: int
    peak_bytes_checkpointed: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def training_cost(
    models: Mapping[str, nn.Module],
    input_size: tuple[int, int, int] = (3, 224, 224),
    batch: int = 8,
    threads: int = 1,
    rounds: int = 10,
    warmup: int = 1,
    forms: Sequence[str] = tuple(TRAINING_FORMS),
    memory_formats: Sequence[str] = tuple(MEMORY_FORMATS),
    baseline: str = 'masked',
    progress: Optional[Callable[[str], None]] = None,
) -> list[StepCost]:
    """Measure training steps of every form of every model in interleaved rounds.

    Time is the processor time of this process, so that other processes on the machine count little.

    Args:
        models: models of this package in training form, by name; left as they are.
        input_size: ``(C, H, W)``.
        batch: images in a step.
        threads: threads of PyTorch.
        rounds: measured rounds.
        warmup: unmeasured steps of each form.
        forms: names of forms.
        memory_formats: ``'contiguous'``, ``'channels_last'`` or both.
        baseline: form that ratios refer to (of the same memory format); the first one where it is not among ``forms``.
        progress: called with a short text now and then.

    Raises:
        ValueError: an unknown form or memory format, or a count below 1.
    """
    _check('form', forms, TRAINING_FORMS)
    _check('memory format', memory_formats, MEMORY_FORMATS)
    if min(batch, threads, rounds) < 1:
        raise ValueError(
            f'batch is {batch}, threads {threads} and rounds {rounds}; all take whole numbers of at least 1.'
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [
            cost
            for name, model in models.items()
            for cost in _costs_of(
                name, model, input_size, batch, rounds, warmup, forms, memory_formats,
                baseline if baseline in forms else forms[0], progress or (lambda text: None),
            )
        ]  # fmt: skip
    finally:
        torch.set_num_threads(before)


def peak_memory(model: nn.Module, input_size: tuple[int, int, int], batch: int) -> int:
    """Bytes that a training step's forward and backward hold at most, without parameters and their gradients.

    Counts the results of every operation while they live; workspace inside kernels is not seen.

    Args:
        model: left as it is.
        input_size: ``(C, H, W)``.
        batch: images in a step.
    """
    shadow = deepcopy(model).train()
    for parameter in shadow.parameters():
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randn(batch, *input_size, device=parameter.device, dtype=parameter.dtype)
    with _LiveBytes() as live:
        shadow(images).sum().backward()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage from its first appearance as a result until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known and self.known[key]() is storage:
            return

        def freed(_: weakref.ref) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _costs_of(
    name: str,
    model: nn.Module,
    input_size: tuple[int, int, int],
    batch: int,
    rounds: int,
    warmup: int,
    forms: Sequence[str],
    memory_formats: Sequence[str],
    baseline: str,
    progress: Callable[[str], None],
) -> list[StepCost]:
    images = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(0))
    built = {form: TRAINING_FORMS[form](model).train() for form in forms}
    memory = {form: _memory(module, input_size, batch) for form, module in built.items()}
    steps = {}
    for memory_format in memory_formats:
        layout = MEMORY_FORMATS[memory_format]
        for form, module in built.items():
            steps[memory_format, form] = _step(
                deepcopy(module).to(memory_format=layout), images.to(memory_format=layout)
            )
    progress(f'{name}: warming up')
    seconds = interleaved_seconds(
        steps, rounds, warmup, lambda text: progress(f'{name}: {text}'), clock=time.process_time
    )
    return [
        StepCost(
            name, form, memory_format, batch, statistics.median(taken),
            statistics.median(b / t for b, t in zip(seconds[memory_format, baseline], taken)), *memory[form],
        )
        for (memory_format, form), taken in seconds.items()
    ]  # fmt: skip


def _memory(model: nn.Module, input_size: tuple[int, int, int], batch: int) -> tuple[int, int]:
    plain = peak_memory(model, input_size, batch)
    checkpointing = deepcopy(model)
    for stage in checkpointing.modules():
        if hasattr(stage, 'grad_checkpointing'):
            stage.grad_checkpointing = True
    return plain, peak_memory(checkpointing, input_size, batch)


def _step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=4e-5)
    targets = torch.zeros(len(images), dtype=torch.int64)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def _check(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f'{what} {", ".join(unknown) or "list is empty"}: choose from {", ".join(known)}.')

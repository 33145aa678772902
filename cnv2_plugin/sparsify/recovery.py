"""What helps a network recover from pruning: statistics measured for the weights that it has now, and a teacher."""

import copy
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from ..models.modes import evaluating


@torch.no_grad()
def recalibrate_norms(
    model: nn.Module,
    batches: Iterable[Any],
    num_batches: Optional[int] = None,
    forward: Optional[Callable[[Any], Any]] = None,
) -> int:
    """Replace the running statistics of batch normalisation by the plain average over some batches, in place.

    Running statistics lag behind the weights. Right after a pruning stage they belong to connections that are gone, and
    a test then says little about the weights; some forward passes mend that ("precise BN", arXiv 2105.07576, section 3;
    after pruning: EagleEye, arXiv 2007.02491, section 3.3). No weight changes, no gradient is computed. Normalisations
    that are frozen (in evaluation mode) stay as they are, dropout is off, and every mode is as before in the end.
    The random states of PyTorch, NumPy and Python are as before too, and so are the generators of a data loader, so
    that training goes on with the batches that it would have seen. Under DDP every process measures its own batches and
    the first one's buffers are broadcast, as always.

    Args:
        model: in training mode.
        batches: what the model takes, such as ten training batches ``(N, C, H, W)``, or the training's data loader
            (PyTorch's, also inside timm's prefetcher). Of a batch that is a list or tuple the model takes the first
            entry, the images.
        num_batches: at most so many; all by default.
        forward: sends one batch through the model where ``model(images)`` does not, on another device for example.

    Returns:
        Number of normalisations that were measured; without any, nothing is run.

    Raises:
        ValueError: if ``num_batches`` is below 1.

    Example:
        >>> if sparsifier.step():
        ...     recalibrate_norms(model, loader, num_batches=10)
    """
    if num_batches is not None and num_batches < 1:
        raise ValueError(f'num_batches is {num_batches}; it takes a number of at least 1, or None for all.')
    run = forward or (lambda batch: model(batch[0] if isinstance(batch, (list, tuple)) else batch))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = {norm: (norm.momentum, int(norm.get_buffer('num_batches_tracked'))) for norm in norms}
    try:
        with evaluating(model), same_randomness(batches):
            for i, batch in enumerate(islice(_apart(batches), num_batches) if norms else ()):
                for norm in norms:
                    norm.train()
                    norm.momentum = 1 / (i + 1)
                run(batch)
    finally:
        for norm, (momentum, count) in before.items():
            norm.momentum = momentum
            norm.get_buffer('num_batches_tracked').fill_(count)
    return len(norms)


def _apart(batches: Any) -> Any:
    """A loader with persistent workers has one iterator, which training is at; a copy gets one of its own."""
    inner = getattr(batches, 'loader', None)
    if isinstance(inner, DataLoader):
        batches = copy.copy(batches)
        batches.loader = _apart(inner)
    elif isinstance(batches, DataLoader) and batches.persistent_workers:
        batches = copy.copy(batches)
        batches._iterator = None
    return batches


@contextmanager
def same_randomness(loader: Any = None) -> Iterator[None]:
    """Leave the random states of PyTorch, NumPy and Python as they were, and the generators of a data loader."""
    loader = getattr(loader, 'loader', loader)
    parts = (loader, getattr(loader, 'sampler', None), getattr(loader, 'batch_sampler', None))
    generators = [g for part in parts if isinstance(g := getattr(part, 'generator', None), torch.Generator)]
    states = [generator.get_state() for generator in generators]
    numpy = sys.modules.get('numpy')
    python, of_numpy = random.getstate(), numpy and numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(of_numpy)
        for generator, state in zip(generators, states):
            generator.set_state(state)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Measure the divergence of the softened predictions from those of a teacher (arXiv 1503.02531, section 2).

    The Kullback-Leibler divergence at the temperature, times its square so that gradients keep their size. Add it to
    the loss with a weight; compute the teacher's logits in evaluation mode and under ``torch.no_grad()``.

    Args:
        logits: of the network that is trained, ``(N, classes)``.
        teacher_logits: of the teacher for the same images, ``(N, classes)``.
        temperature: softens both; above 0.

    Returns:
        A scalar, the mean over the images.

    Raises:
        ValueError: if the shapes differ, or the temperature is out of range.

    Example:
        >>> loss = criterion(logits, targets) + distillation_loss(logits, teacher(images))
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f'the logits have the shape {tuple(logits.shape)} but those of the teacher {tuple(teacher_logits.shape)}; '
            f'give logits of the same images and classes.'
        )
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}; it takes a number above 0.')
    ours, theirs = (F.log_softmax(x.float() / temperature, 1) for x in (logits, teacher_logits.detach()))
    return F.kl_div(ours, theirs, reduction='batchmean', log_target=True) * temperature**2

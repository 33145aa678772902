"""How a network is trained and pruned in an experiment: plain values, so that a run can be told by them."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cnv2_plugin.sparsify import cosine_with_rewind

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        rate: highest learning rate; rises linearly over ``warmup``, then falls as a half cosine to 0.
        warmup: share of training in which the learning rate rises.
        momentum: Nesterov momentum of SGD.
        weight_decay: of every parameter.
        label_smoothing: of the cross-entropy.
        shift: pixels that an image is shifted by at most.
        flip: mirror images at random.
        masks: ``'learned'`` prunes in stages, ``'none'`` never, ``'random'`` starts with random final masks,
            ``'given'`` with those of another run.
        sparsifier: options of :class:`~cnv2_plugin.sparsify.StagedSparsifier`.
        condense: train the surviving weights only, once the last stage is done.
        recalibrate: training batches on which batch normalisation is measured anew after each stage.
        rewind: share of ``rate`` that the learning rate goes back to after the last stage, see
            :func:`~cnv2_plugin.sparsify.cosine_with_rewind`; 0 goes on with the one cosine.
        distill: weight of the distillation from a teacher, see :func:`~cnv2_plugin.sparsify.distillation_loss`.
        temperature: of the distillation.
    """

    epochs: int = 20
    batch_size: int = 64
    rate: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    shift: int = 2
    flip: bool = True
    masks: str = 'learned'
    sparsifier: dict[str, Any] = field(default_factory=dict)
    condense: bool = True
    recalibrate: int = 0
    rewind: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.masks not in ('learned', 'none', 'random', 'given'):
            raise ValueError(f"masks is {self.masks!r}; it takes 'learned', 'none', 'random' or 'given'.")

    def learning_rate(self, progress: float) -> float:
        """Learning rate of the step that ends at a progress between 0 and 1."""
        last_stage = self.sparsifier.get('sparse_fraction', 0.5)
        if self.rewind and progress > last_stage:
            return self.rate * cosine_with_rewind(progress, last_stage, self.rewind)
        if progress < self.warmup:
            return self.rate * progress / self.warmup
        return self.rate * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2

    def settings(self) -> dict[str, Any]:
        """Plain values, see :func:`not_as_by_default`."""
        return not_as_by_default(self)


def not_as_by_default(settings: 'DataclassInstance') -> dict[str, Any]:
    """Fields of a dataclass as plain values; those that are as by default are left out.

    So a run keeps its fingerprint when an option is added of which it takes the default.
    """
    values = asdict(settings)
    for known in fields(settings):
        default = known.default if known.default_factory is MISSING else known.default_factory()
        if values[known.name] == default:
            del values[known.name]
    return values

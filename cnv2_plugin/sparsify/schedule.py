"""Which pruning stage training is in, and a learning rate that goes with it: pure functions of progress."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SparsificationSchedule:
    """Spread ``factor - 1`` stages over a part of training (CondenseNet, section 3.2).

    Stages are spaced evenly: without ``start`` (the papers' schedule) stage ``i`` (from 1) is due once
    ``progress >= i * sparse_fraction / (factor - 1)``; the rest of training runs with final masks.

    Args:
        sparse_fraction: share of training after which the last stage is done, above 0 and at most 1.
        start: share of training before the part with stages begins, at least 0 and below ``sparse_fraction``.

    Raises:
        ValueError: if a number is out of range.
    """

    sparse_fraction: float = 0.5
    start: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sparse_fraction <= 1:
            raise ValueError(f'sparse_fraction is {self.sparse_fraction}; it takes a number above 0 and at most 1.')
        if not 0 <= self.start < self.sparse_fraction:
            raise ValueError(
                f'start is {self.start}; it takes a number of at least 0 and below sparse_fraction, which is '
                f'{self.sparse_fraction}.'
            )

    def due(self, stage: int, factor: int) -> float:
        """Return the progress at which a stage (from 1 to ``factor - 1``) is due."""
        if not self.start:
            return stage * self.sparse_fraction / (factor - 1)
        return self.start + stage / (factor - 1) * (self.sparse_fraction - self.start)

    def stage(self, progress: float, factor: int) -> int:
        """Count the stages due at a progress between 0 and 1, for a condense or sparse factor."""
        return sum(progress >= self.due(i, factor) for i in range(1, factor))


def cosine_with_rewind(progress: float, at: float, peak: float = 1.0, warmup: float = 0.0) -> float:
    """Return a factor of the learning rate: a half cosine over training that goes back to a peak after the last stage.

    Until ``at`` the rate is that of one cosine over the whole training, so that stages meet the rates that the papers
    have; then the schedule is rewound to ``peak`` and falls to 0 over what is left (rewinding: arXiv 2003.02389,
    section 3; warm restarts: arXiv 1608.03983). A pure function, so that a resumed training needs nothing else.

    Args:
        progress: share of training that is done, between 0 and 1.
        at: progress of the rewind: the ``sparse_fraction`` of the sparsifier, between 0 and 1.
        peak: factor right after it; 0 leaves the one cosine.
        warmup: share of training over which the factor rises from 0 to 1 first.

    Raises:
        ValueError: if ``at`` is not between ``warmup`` and 1, or ``peak`` is below 0.

    Example:
        >>> scheduler = LambdaLR(optimizer, lambda step: cosine_with_rewind(step / total_steps, at=0.5))
    """
    if not 0 <= warmup <= at <= 1:
        raise ValueError(f'at is {at} and warmup {warmup}; they take shares of training, warmup not above at.')
    if peak < 0:
        raise ValueError(f'peak is {peak}; it takes a factor of at least 0.')
    if progress < warmup:
        return progress / warmup
    if peak and at <= progress < 1:
        return peak * (1 + math.cos(math.pi * (progress - at) / (1 - at))) / 2
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2 if progress < 1 else 0.0

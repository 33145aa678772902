"""Which pruning stage training is in: a pure function of progress (CondenseNet, section 3.2)."""

from dataclasses import dataclass

SPACINGS = ('even', 'cubic')
"""How stages are spread: evenly as in the papers, or early ones closer together."""


@dataclass(frozen=True)
class SparsificationSchedule:
    """Spread ``factor - 1`` stages over a part of training.

    The papers' schedule begins at once and is even: stage ``i`` (from 1) is due once
    ``progress >= i * sparse_fraction / (factor - 1)``; the rest of training runs with final masks. With cubic spacing
    the share of weights that is pruned follows ``1 - (1 - t)^3`` over the part, so that stages come fast while there
    is much to prune and slowly at the end (gradual pruning, arXiv 1710.01878, section 3).

    Args:
        sparse_fraction: share of training after which the last stage is done, above 0 and at most 1.
        start: share of training before the part with stages begins, at least 0 and below ``sparse_fraction``.
        spacing: ``'even'`` or ``'cubic'``.

    Raises:
        ValueError: a number is out of range, or the spacing unknown.
    """

    sparse_fraction: float = 0.5
    start: float = 0.0
    spacing: str = 'even'

    def __post_init__(self) -> None:
        if not 0 < self.sparse_fraction <= 1:
            raise ValueError(f'sparse_fraction is {self.sparse_fraction}; it takes a number above 0 and at most 1.')
        if not 0 <= self.start < self.sparse_fraction:
            raise ValueError(
                f'start is {self.start}; it takes a number of at least 0 and below sparse_fraction, which is '
                f'{self.sparse_fraction}.'
            )
        if self.spacing not in SPACINGS:
            raise ValueError(f'spacing is {self.spacing!r}; it takes {" or ".join(map(repr, SPACINGS))}.')

    def due(self, stage: int, factor: int) -> float:
        """Progress at which a stage (from 1 to ``factor - 1``) is due."""
        if self.spacing == 'even' and not self.start:
            return stage * self.sparse_fraction / (factor - 1)
        share = stage / (factor - 1)
        if self.spacing == 'cubic':
            share = 1 - (1 - share) ** (1 / 3)
        return self.start + share * (self.sparse_fraction - self.start)

    def stage(self, progress: float, factor: int) -> int:
        """Stages due at a progress between 0 and 1, for a condense or sparse factor."""
        return sum(progress >= self.due(i, factor) for i in range(1, factor))

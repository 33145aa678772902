"""Which pruning stage training is in: a pure function of progress (CondenseNet, section 3.2)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SparsificationSchedule:
    """Spread ``factor - 1`` stages evenly over the first part of training.

    Stage ``i`` (from 1) is due once ``progress >= i * sparse_fraction / (factor - 1)``; the rest of training runs with
    final masks.

    Args:
        sparse_fraction: share of training in which stages happen, above 0 and at most 1.

    Raises:
        ValueError: ``sparse_fraction`` is out of range.
    """

    sparse_fraction: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sparse_fraction <= 1:
            raise ValueError(f'sparse_fraction is {self.sparse_fraction}; it takes a number above 0 and at most 1.')

    def stage(self, progress: float, factor: int) -> int:
        """Stages due at a progress between 0 and 1, for a condense or sparse factor."""
        return sum(progress >= i * self.sparse_fraction / (factor - 1) for i in range(1, factor))

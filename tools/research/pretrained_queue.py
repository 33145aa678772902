"""Which runs ``compare_pretrained.py`` does, the most telling first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .pretrained_run import PretrainedRun, Sources, recipe_of
from .recipe import Recipe

TUNING = Recipe(epochs=4, batch_size=32, rate=0.03, warmup=0.1, shift=0, flip=False, masks='none')
"""Of the unpruned network; images come once through the front, so that they are neither shifted nor mirrored."""

EPOCHS = 2
TRAIN_IMAGES, TEST_IMAGES = 6000, 2000
FACTORS = 8, 16, 4
SEEDS = 0, 1, 2
COMPARED = 'learned', 'random', 'magnitude', 'activations', 'plain'
LATER = 'channels', 'early', 'narrow', 'reactivated'
SCRATCH = 'scratch-learned', 'scratch-random'
SETS = 'touching-pairs-6', 'fashion-mnist'
"""Of the tables; the other sets are trained on where they are named."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: an arm at a factor, on an image set."""

    images: str
    arm: str
    factor: int


def blocks(sets: Iterable[str] = SETS) -> list[list[Cell]]:
    """Rows that are done together, seed by seed, the most telling first; the unpruned network has factor 1."""
    found = []
    for images in sets:
        for factor in FACTORS:
            unpruned = [Cell(images, 'unpruned', 1)] if factor == FACTORS[0] else []
            arms = [Cell(images, arm, factor) for arm in COMPARED]
            found.append([*arms[:2], *unpruned, *arms[2:]])
        found += [[Cell(images, arm, factor) for arm in LATER] for factor in FACTORS]
        found += [[Cell(images, arm, factor) for arm in SCRATCH] for factor in FACTORS]
    return found


@dataclass(frozen=True)
class Budget:
    """What every run gets; the defaults are those of the tables.

    Attributes:
        train_images: to train on.
        test_images: to test on.
        tuning: recipe of the unpruned network that arms go on from.
        epochs: of each arm behind it.
    """

    train_images: int = TRAIN_IMAGES
    test_images: int = TEST_IMAGES
    tuning: Recipe = TUNING
    epochs: int = EPOCHS


def start_of(images: str, budget: Budget, sources: Sources) -> PretrainedRun:
    """The tuning of an image set."""
    return PretrainedRun(
        'start', 1, images, budget.tuning, budget.train_images, budget.test_images, sources=sources
    )  # fmt: skip


def run_of(cell: Cell, budget: Budget, sources: Sources) -> PretrainedRun:
    """The run behind a row."""
    start = start_of(cell.images, budget, sources)
    recipe = recipe_of(cell.arm, budget.tuning, budget.epochs)
    return PretrainedRun(
        cell.arm, cell.factor, cell.images, recipe, budget.train_images, budget.test_images, start, sources
    )


def queue(
    wanted: Iterable[Iterable[Cell]], seeds: Sequence[int], budget: Budget, sources: Sources
) -> list[tuple[PretrainedRun, int]]:
    """Runs and seeds in their order: a block with all its seeds before the next one."""
    return [(run_of(cell, budget, sources), seed) for block in wanted for seed in seeds for cell in block]

"""The lists of runs behind the tables, in the order in which they are worked through."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Optional

from .recipe import Recipe
from .runs import NetworkRun

PAPERS = Recipe()
"""The papers' staged schedule: stages spread evenly over the first half of training, L1 importance."""

OURS = Recipe(sparsifier=dict(sparse_fraction=0.25), rewind=1.0, distill=1.0, recalibrate=10)
"""Stages in the first quarter of training, the learning rate rewound after them, distilled from the same trunk that is
never pruned, statistics measured anew after each stage.

Final masks trained from the first step, and random ones, are not below those that are learnt in half of the training
(suite ``pruning-s``), nor random ones by this recipe (``parts-s``): what the papers' schedule lacks at a short budget
is time with the final masks, not better ones.
"""

NEVER = replace(PAPERS, masks='none')
RANDOM = replace(PAPERS, masks='random')
GIVEN = replace(PAPERS, masks='given')

ABLATION = {
    'cubic': (dict(sparsifier=dict(spacing='cubic')), 'cubic spacing over the first half'),
    'early': (dict(sparsifier=dict(sparse_fraction=0.25)), 'even spacing over the first quarter'),
    'earliest': (dict(sparsifier=dict(sparse_fraction=0.1)), 'even spacing over the first tenth'),
    'start': (dict(sparsifier=dict(start=0.2)), 'even spacing from a fifth of training to the half'),
    'norm': (dict(sparsifier=dict(importance='norm')), 'L1 scaled by the normalisation in front'),
    'activation': (dict(sparsifier=dict(importance='activation')), 'L1 scaled by the activations that are read'),
    'taylor': (dict(sparsifier=dict(importance='taylor')), 'first-order Taylor importance'),
    'rewind': (dict(rewind=1.0), 'learning rate rewound after the last stage'),
    'distilled': (dict(distill=1.0), 'distilled from the trunk that is never pruned'),
    'together': (
        dict(sparsifier=dict(spacing='cubic', importance='taylor'), rewind=1.0, distill=1.0, recalibrate=10),
        'cubic, Taylor, rewound, distilled, recalibrated',
    ),
    'early-distilled': (
        dict(sparsifier=dict(sparse_fraction=0.25), distill=1.0, recalibrate=10),
        'first quarter, distilled, recalibrated',
    ),
    'ours': (
        dict(sparsifier=OURS.sparsifier, rewind=OURS.rewind, distill=OURS.distill, recalibrate=OURS.recalibrate),
        'first quarter, rewound, distilled, recalibrated',
    ),
    'earliest-distilled': (
        dict(sparsifier=dict(sparse_fraction=0.1), distill=1.0, recalibrate=10),
        'first tenth, distilled, recalibrated',
    ),
    'rewound-distilled': (
        dict(rewind=1.0, distill=1.0, recalibrate=10),
        'first half, rewound, distilled, recalibrated',
    ),
    'recalibrated': (dict(recalibrate=10), 'statistics of 10 batches after each stage'),
}
"""Options of the recipe by the suffix of the run, alone and together, and what the table says.

Runs with ``spacing`` or ``importance`` are kept as results only: they gained nothing, and the sparsifier no longer has
these options.
"""

TRAIN_IMAGES = 20_000

_PRUNED = ('condensenetv2', 'condensenet', 'sfr-shufflenetv2')
_FAMILIES = ('condensenetv2', 'condensenet', 'shufflenetv2', 'sfr-shufflenetv2', 'dense', 'mobilenetv3')


def headline(size: str) -> list[NetworkRun]:
    """Every family at one size of multiply-adds (``'s'`` or ``'l'``)."""
    notes = {family: "the papers' recipe" if family in _PRUNED else 'has nothing to prune' for family in _FAMILIES}
    return [_run(f'{family}-{size}', note=note) for family, note in notes.items()]


def pruning(size: str) -> list[NetworkRun]:
    """One trunk, CondenseNetV2, pruned in every way and not at all (our recipe learns from the latter)."""
    network = f'condensenetv2-{size}'
    never, papers = _run(network, 'never', NEVER, 'never pruned (upper bound)'), _run(network)
    return [
        never,
        papers,
        _taught(never),
        _run(network, 'scratch', GIVEN, 'from scratch with the final masks', masks_of=papers),
        _run(network, 'random', RANDOM, 'random groups'),
    ]


def ours(size: str) -> list[NetworkRun]:
    """Our recipe on every family that is pruned, each behind its teacher."""
    never = [_run(f'{family}-{size}', 'never', NEVER, 'never pruned (upper bound)') for family in _PRUNED]
    return [run for teacher in never for run in (teacher, _taught(teacher))]


def distilled(size: str) -> list[NetworkRun]:
    """The teacher of our recipe without the rest of it: for the papers' schedule, and for the unpruned peer."""
    teacher = ours(size)[0]
    taught = replace(PAPERS, distill=OURS.distill)
    return [
        _run(teacher.network, 'distilled', taught, "the papers' schedule, distilled as well", teacher=teacher),
        _run(f'shufflenetv2-{size}', 'distilled', taught, f'distilled from {teacher.name}', teacher=teacher),
    ]


def parts(size: str) -> list[NetworkRun]:
    """What our recipe may not need: the teacher, and groups that are learnt."""
    teacher = ours(size)[0]
    without = replace(OURS, masks='random')
    return [
        _run(teacher.network, 'rewound', replace(PAPERS, rewind=OURS.rewind), "the papers' schedule, then rewound"),
        _run(teacher.network, 'random-ours', without, 'random groups, else our recipe', teacher=teacher),
    ]


def reactivation(
    size: str, families: Iterable[str], variants: Iterable[str], pruned: Iterable[str] = ()
) -> list[NetworkRun]:
    """Trunks that reactivate, never pruned, with variants: reactivation from 0 (``'zero'``), or none (``'bare'``).

    Those named in ``pruned`` are pruned by our recipe as well.
    """
    notes = {'zero': 'never pruned, reactivation starts at 0', 'bare': 'never pruned, without'}
    never = []
    for network in (f'{family}-{size}' for family in families):
        never.append(_run(network, 'never', NEVER, 'never pruned, with reactivation'))
        never += [_run(f'{network}-{variant}', 'never', NEVER, notes[variant]) for variant in variants]
    teachers = [run for run in never if run.network in pruned]
    return [*never, *(_run(run.network, 'ours', OURS, 'the same by our recipe', teacher=run) for run in teachers)]


def confirmation(size: str) -> list[NetworkRun]:
    """The decisive pairs once more, on all training images: our recipe, its teachers, and the unpruned peer."""
    peer = [run for run in headline(size) if run.network == f'shufflenetv2-{size}']
    return [_on_all_images(run) for run in (*ours(size), *peer)]


def _on_all_images(run: NetworkRun) -> NetworkRun:
    return replace(run, name=f'{run.name}_60k', train_images=None, teacher=run.teacher and _on_all_images(run.teacher))


def _taught(teacher: NetworkRun) -> NetworkRun:
    return _run(teacher.network, 'ours', OURS, 'our recipe, distilled from the trunk never pruned', teacher=teacher)


def ablation(network: str, images: str, train_images: Optional[int], epochs: int) -> list[NetworkRun]:
    """What each option of the recipe does by itself, and all together, at a small budget."""

    def run(suffix: str, recipe: Recipe, note: str, teacher: Optional[NetworkRun] = None) -> NetworkRun:
        name = f'{network}_{"digits" if images == "digits" else "ablation"}-{suffix}'
        return NetworkRun(
            name, network, replace(recipe, epochs=epochs), images, train_images, None, None, teacher, note
        )

    never = run('never', NEVER, 'never pruned (upper bound)')
    runs = [never, run('papers', PAPERS, "the papers' recipe")]
    for suffix, (options, note) in ABLATION.items():
        recipe = replace(PAPERS, **options)
        runs.append(run(suffix, recipe, note, never if recipe.distill else None))
    return runs


def _run(
    network: str, suffix: str = '', recipe: Recipe = PAPERS, note: str = "the papers' recipe",
    masks_of: Optional[NetworkRun] = None, teacher: Optional[NetworkRun] = None,
) -> NetworkRun:  # fmt: skip
    name = f'{network}_{suffix}' if suffix else network
    return NetworkRun(name, network, recipe, train_images=TRAIN_IMAGES, masks_of=masks_of, teacher=teacher, note=note)


SUITES = {
    'headline-s': lambda: headline('s'),
    'pruning-s': lambda: pruning('s'),
    'ours-s': lambda: ours('s'),
    'distilled-s': lambda: distilled('s'),
    'parts-s': lambda: parts('s'),
    'reactivation-s': lambda: reactivation(
        's',
        ('condensenetv2', 'sfr-shufflenetv2'),
        ('zero', 'bare'),
        ('condensenetv2-s-zero', 'condensenetv2-s-bare', 'sfr-shufflenetv2-s-zero'),
    ),
    'headline-l': lambda: headline('l'),
    'pruning-l': lambda: pruning('l'),
    'ours-l': lambda: ours('l'),
    'reactivation-l': lambda: reactivation('l', ('condensenetv2',), ('bare',)),
    'confirmation-s': lambda: confirmation('s'),
    'ablation': lambda: ablation('condensenetv2-s', 'fashion-mnist', 10_000, 6),
    'ablation-digits': lambda: ablation('condensenetv2-xs', 'digits', None, 10),
}
"""Lists by the name that ``tools/research/compare_runs.py`` takes."""

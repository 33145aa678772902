"""Training time of runs: steps of all in the same interleaved rounds, since the runs themselves met many machines."""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Optional

import torch

from cnv2_plugin.deploy.timing import Progress, Runner, interleaved_seconds

from .data import SIZE, Data, Images
from .measurement import keep, kept
from .networks import NETWORKS
from .recipe import Recipe
from .runs import NetworkRun, Place
from .train import Training, sparse_layers

LONG = 1000
"""Epochs of the one batch that is timed: as many steps as any number of stages needs."""


def measure(runs: Sequence[NetworkRun], place: Place, rounds: int = 20, progress: Optional[Progress] = None) -> None:
    """Time steps of every run on one core and write what the whole training takes beside the results.

    A step makes a batch, computes loss (with a teacher's, where there is one) and gradients, and changes the weights.
    What is pruned in stages is timed before the first and after the last one, and each counts for its share of the
    training; the teacher's own training does not count. The networks have random weights and masks.

    Args:
        runs: any, finished or not.
        place: of the results.
        rounds: interleaved steps of each network.
        progress: called with a short text now and then.
    """
    steps = {(run.name, phase): _step(run, recipe) for run in runs for phase, (recipe, _) in _phases(run).items()}
    timed = interleaved_seconds(steps, rounds, 2, progress, time.process_time)
    seconds = {
        run.name: round(sum(median(timed[run.name, phase]) * count for phase, (_, count) in _phases(run).items()), 1)
        for run in runs
    }
    keep(place, 'training_time', rounds, {name: {'seconds': one} for name, one in seconds.items()})


def measured(place: Place) -> dict[str, float]:
    """Seconds of the whole training by run; empty where nothing was measured."""
    return {name: row['seconds'] for name, row in kept(place, 'training_time').items()}


def _phases(run: NetworkRun) -> dict[str, tuple[Recipe, float]]:
    """A recipe whose first step is one of that phase, and the number of such steps, by name of the phase."""
    steps = float(run.recipe.epochs * (_train_images(run) // run.recipe.batch_size))
    recipe = replace(run.recipe, rate=0.0, epochs=LONG)
    final = replace(recipe, masks='random')
    if recipe.masks == 'none' or not sparse_layers(NETWORKS[run.network].build()):
        return {'all': (recipe, steps)}
    if recipe.masks != 'learned':
        return {'all': (final, steps)}
    before = recipe.sparsifier.get('sparse_fraction', 0.5) * steps
    return {'before': (recipe, before), 'after': (final, steps - before)}


def _train_images(run: NetworkRun) -> int:
    """How many images a run trains on."""
    whole = {'digits': 1347, 'fashion-mnist': 60_000}[run.images]
    return min(run.train_images or whole, whole)


def _step(run: NetworkRun, recipe: Recipe) -> Runner:
    pixels = torch.randint(256, (recipe.batch_size, 1, SIZE, SIZE), dtype=torch.uint8)
    images = Images(pixels, torch.arange(recipe.batch_size) % 10)
    teacher = None if run.teacher is None else NETWORKS[run.teacher.network].build()
    training = Training(NETWORKS[run.network].build(), Data(images, images, 128.0, 64.0), recipe, 0, teacher=teacher)
    training.model.train()
    generator = torch.Generator()
    return lambda: [training.step(*batch) for batch in training.batches(generator)]

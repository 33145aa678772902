"""Runs by name: each is trained once, with one seed at a time, and leaves one row of a CSV file.

A run is told by the fingerprint of its settings. Where its row is there, nothing is done; where its work folder holds
a checkpoint, training goes on from there. Two processes may work through the same list side by side: a run that another
one holds is passed over.
"""

import base64
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
import torch
from torch import Tensor

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.benchmark.machine import machine
from cnv2_plugin.deploy import condense, verify

from . import data as image_sets
from .networks import NETWORKS
from .recipe import Recipe
from .results_file import add_row, locked, read_rows
from .train import accuracy, fit, unit_masks


@dataclass(frozen=True)
class Place:
    """Where runs read and write.

    Attributes:
        results: CSV file of what is finished, one row a run.
        work: folder of checkpoints, which may go once the results are there.
        fashion_mnist: folder that ``tools/prepare_fashion_mnist.py`` filled.
        command: what is written into results as the way to get them.
        device: that trains; everything else is done on the CPU.
    """

    results: Path
    work: Path
    fashion_mnist: Path = Path('data/fashion_mnist')
    command: str = ''
    device: str = 'cpu'


class Run(Protocol):
    """What :func:`complete` takes: a name, settings that tell one run from another, and the work itself."""

    name: str

    def settings(self) -> dict[str, Any]:
        """Plain values."""

    def perform(self, seed: int, folder: Path, place: Place) -> dict[str, Any]:
        """Train and test, going on from what the folder holds; returns figures as plain values."""


class BusyError(RuntimeError):
    """Another process works on this run, or its settings are gone."""


GONE = {'spacing', 'importance'}
"""Settings of the sparsifier that gained nothing; runs with them are kept as results only."""


@dataclass(frozen=True)
class NetworkRun:
    """One network of :data:`~tools.research.networks.NETWORKS`, trained by one recipe.

    Attributes:
        name: of the run.
        network: name of the network.
        recipe: how it is trained.
        images: name of the image set.
        train_images: at most so many to train on.
        test_images: at most so many to test on.
        masks_of: the run whose final masks it starts with.
        teacher: the run whose network it learns from; its checkpoint is read, or trained again where it is gone.
        note: what a table says of it.
    """

    name: str
    network: str
    recipe: Recipe
    images: str = 'fashion-mnist'
    train_images: Optional[int] = None
    test_images: Optional[int] = None
    masks_of: Optional['NetworkRun'] = None
    teacher: Optional['NetworkRun'] = None
    note: str = ''

    def settings(self) -> dict[str, Any]:
        """Plain values; a teacher only where there is one, so that older runs stay what they are."""
        settings = dict(
            network=NETWORKS[self.network].settings(), recipe=self.recipe.settings(), images=self.images,
            train_images=self.train_images, test_images=self.test_images,
            masks_of=self.masks_of and self.masks_of.settings(),
        )  # fmt: skip
        return {**settings, 'teacher': self.teacher.settings()} if self.teacher else settings

    def perform(self, seed: int, folder: Path, place: Place) -> dict[str, Any]:
        """Train, test as trained and condensed, count.

        Raises:
            BusyError: the recipe has settings that are gone.
        """
        if gone := GONE & set(self.recipe.sparsifier):
            raise BusyError(f'{self.name} cannot be trained any more: the sparsifier has no {", ".join(sorted(gone))}.')
        data = image_sets.load(self.images, self.train_images, self.test_images, place.fashion_mnist)
        masks = None
        if self.masks_of is not None:
            masks = decoded_masks(complete(self.masks_of, seed, place)['masks'])
        teacher = None if self.teacher is None else self.teacher.trained(data, seed, place)
        model = self.build(data, seed)
        title = f'{self.name}, seed {seed}'
        history = fit(model, data, self.recipe, seed, folder / 'checkpoint.pth', masks, title, teacher, place.device)
        figures = dict(
            train_images=len(data.train), test_images=len(data.test), **_cost(model, self.recipe.masks == 'none')
        )
        figures['accuracy'] = history[-1]['accuracy']
        if self.recipe.masks != 'none' and unit_masks(model):
            condensed = condense(model)
            report = verify(model, condensed, tuple(data.train.pixels.shape[1:]), exact=True)
            report.check(1e-5, 'the condensed network')
            figures['accuracy_condensed'] = accuracy(condensed, data, data.test)
            figures['masks'] = encoded_masks(unit_masks(model))
        figures['seconds'] = round(sum(row['seconds'] for row in history), 1)
        figures['history'] = {key: [round(row[key], 4) for row in history] for key in history[0]}
        return figures

    def build(self, data: image_sets.Data, seed: int) -> torch.nn.Module:
        """The network before training."""
        torch.manual_seed(seed)
        return NETWORKS[self.network].build(data.train.pixels.shape[1], int(data.train.labels.max()) + 1)

    def trained(self, data: image_sets.Data, seed: int, place: Place) -> torch.nn.Module:
        """The network as a teacher: from the run's checkpoint, which is made again where it is gone.

        Raises:
            BusyError: another process is at it.
        """
        complete(self, seed, place)
        model = self.build(data, seed)
        folder = run_folder(self, seed, place)
        with held(folder):
            fit(
                model, data, self.recipe, seed, folder / 'checkpoint.pth', title=f'{self.name}, seed {seed}',
                device=place.device,
            )  # fmt: skip
        return model

    def cost(self) -> dict[str, int]:
        """Multiply-adds and parameters, without training."""
        return _cost(NETWORKS[self.network].build(), self.recipe.masks == 'none')


def _cost(model: torch.nn.Module, unpruned: bool = False) -> dict[str, int]:
    cost = count_cost(model, (1, image_sets.SIZE, image_sets.SIZE))
    found = dict(
        mult_adds=cost.mult_adds_pruned, params=cost.params_pruned, mult_adds_unpruned=cost.mult_adds,
        params_unpruned=cost.params,
    )  # fmt: skip
    if unpruned:
        found.update(mult_adds=cost.mult_adds, params=cost.params)
    return found


def run_folder(run: Run, seed: int, place: Place) -> Path:
    """The work folder of a run, which is made where it is missing."""
    folder = place.work / f'{run.name}_seed{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fingerprint(run: Run) -> str:
    """Twelve digits that change with every setting."""
    text = json.dumps(run.settings(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def finished(run: Run, seed: int, place: Place) -> Optional[dict[str, Any]]:
    """The figures of a run, or None where it is not done yet.

    Raises:
        ValueError: the row of that name and seed is of a run with other settings.
    """
    rows = read_rows(place.results)
    found = next((row for row in rows if (row['name'], row['seed']) == (run.name, seed)), None)
    if found is not None and found['fingerprint'] != fingerprint(run):
        raise ValueError(
            f'{place.results} holds the figures of other settings than {run.name}, seed {seed}, has now; rename the '
            'run or remove the row.'
        )
    return found


def complete(run: Run, seed: int, place: Place) -> dict[str, Any]:
    """The figures of a run, which is trained first where it has to be.

    Raises:
        BusyError: another process is at it, or its recipe has settings that are gone.
        ValueError: a row of that name and seed is of other settings.
    """
    found = finished(run, seed, place)
    if found is not None:
        return found
    folder = run_folder(run, seed, place)
    with held(folder):
        found = finished(run, seed, place)
        if found is None:
            figures = run.perform(seed, folder, place)
            row = dict(
                name=run.name, seed=seed, fingerprint=fingerprint(run), command=place.command,
                date=time.strftime('%Y-%m-%d', time.gmtime()), machine=machine(), **figures,
            )  # fmt: skip
            if place.device != 'cpu':
                cuda = place.device.startswith('cuda')
                row['device'] = torch.cuda.get_device_name(place.device) if cuda else place.device
            add_row(place.results, row)
            found = finished(run, seed, place)
    return found


def complete_all(runs: list[tuple[Run, int]], place: Place) -> list[tuple[Run, int]]:
    """Work through a list in its order; returns what other processes are at."""
    busy = []
    for run, seed in runs:
        try:
            complete(run, seed, place)
        except BusyError as error:
            print(error, file=sys.stderr)
            busy.append((run, seed))
    return busy


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the work folder of a run.

    Raises:
        BusyError: another process holds it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / 'lock'))
        except BlockingIOError as error:
            raise BusyError(f'{folder.name} is being trained by another process; it is passed over.') from error
        yield


def encoded_masks(masks: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Masks as text: their shape, and their bits in base 64."""
    return {
        name: dict(shape=list(mask.shape), bits=base64.b64encode(np.packbits(mask.numpy())).decode())
        for name, mask in masks.items()
    }


def decoded_masks(encoded: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """The inverse of :func:`encoded_masks`."""
    masks = {}
    for name, mask in encoded.items():
        bits = np.unpackbits(np.frombuffer(base64.b64decode(mask['bits']), np.uint8))
        rows, columns = mask['shape']
        masks[name] = torch.from_numpy(bits[: rows * columns].reshape(rows, columns).astype(bool))
    return masks

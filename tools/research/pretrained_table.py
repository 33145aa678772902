"""The figures of ``compare_pretrained.py``: a table, what is missing of it, a sentence a factor, and a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cnv2_plugin.benchmark import benchmark
from cnv2_plugin.kernels import available

from .measurement import keep, kept
from .plot import Point, plot_runs
from .pretrained_arms import ARMS
from .pretrained_network import IMAGE_SIZE
from .pretrained_queue import Budget, Cell, run_of, start_of
from .pretrained_run import PretrainedRun, Sources
from .runs import Place, finished
from .tables import markdown
from .train import sparse_layers

STANDARD, NATIVE = 'lowered', 'native'


@dataclass(frozen=True)
class Finished:
    """What is done of the rows that were asked for.

    Attributes:
        cells: all rows.
        seeds: all seeds.
        runs: by row.
        rows: figures by row and seed; rows without any are left out.
        starts: figures of the tuning by image set and seed.
    """

    cells: Sequence[Cell]
    seeds: Sequence[int]
    runs: dict[Cell, PretrainedRun]
    rows: dict[Cell, dict[int, dict[str, Any]]]
    starts: dict[str, dict[int, dict[str, Any]]]

    @classmethod
    def read(
        cls, cells: Iterable[Cell], seeds: Sequence[int], budget: Budget, sources: Sources, place: Place
    ) -> 'Finished':
        """Everything that stands in the results."""
        cells = list(cells)
        runs = {cell: run_of(cell, budget, sources) for cell in cells}
        rows = {cell: some for cell, run in runs.items() if (some := _seeds(run, seeds, place))}
        sets = dict.fromkeys(cell.images for cell in cells)
        starts = {images: _seeds(start_of(images, budget, sources), seeds, place) for images in sets}
        return cls(cells, list(seeds), runs, rows, starts)

    def accuracies(self, cell: Cell) -> list[float]:
        """Of the seeds that are there."""
        return [figures['accuracy'] for figures in self.rows.get(cell, {}).values()]


def _seeds(run: PretrainedRun, seeds: Iterable[int], place: Place) -> dict[int, dict[str, Any]]:
    found = {seed: finished(run, seed, place) for seed in seeds}
    return {seed: figures for seed, figures in found.items() if figures is not None}


def report(found: Finished, place: Place) -> str:
    """Table, missing cells and sentences as Markdown."""
    parts = [table(found, kept(place, 'latency')), missing(found), *starts(found), *sentences(found)]
    return '\n'.join(f'{part.rstrip()}\n' for part in parts if part)


def table(found: Finished, latency: dict[str, dict[str, float]]) -> str:
    """A row a cell that has figures."""
    header = ['images', 'network', 'factor', 'accuracy, mean ± spread', 'each seed', 'seeds', 'multiply-adds (M)',
              'training, CPU seconds', 'latency, standard (ms)', 'native (ms)']  # fmt: skip
    rows = []
    for cell, figures in found.rows.items():
        values, first = found.accuracies(cell), next(iter(figures.values()))
        spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
        timed = latency.get(found.runs[cell].name, {})
        rows.append([
            cell.images, ARMS[cell.arm].label, cell.factor, f'{fmean(values):.2f}{spread}',
            ' / '.join(f'{value:.2f}' for value in values), f'{len(values)} of {len(found.seeds)}',
            f'{first["mult_adds"] / 1e6:.2f}', f'{fmean(one["seconds"] for one in figures.values()):.0f}',
            *(f'{timed[form]:.3f}' if form in timed else '' for form in ('standard', 'native')),
        ])  # fmt: skip
    return markdown(header, rows, texts=2)


def missing(found: Finished) -> str:
    """What there are no figures of yet; empty where nothing is missing."""
    lines = []
    for cell in found.cells:
        there = found.rows.get(cell, {})
        lacking = [seed for seed in found.seeds if seed not in there]
        if lacking:
            text = 'all seeds' if not there else f'seed {", ".join(map(str, lacking))}'
            lines.append(f'- {cell.images}, {ARMS[cell.arm].label}, factor {cell.factor}: {text}')
    total = len(found.cells) * len(found.seeds)
    done = sum(map(len, found.rows.values()))
    return f'{done} of {total} runs are done; missing:\n\n' + '\n'.join(lines) if lines else ''


def starts(found: Finished) -> list[str]:
    """What the arms go on from, by image set."""
    return [
        f'{images}: the tuned network that all pretrained arms go on from has '
        f'{" / ".join(format(one["accuracy"], ".2f") for one in seeds.values())} %.'
        for images, seeds in found.starts.items()
        if seeds
    ]


def sentences(found: Finished) -> list[str]:
    """For each image set and factor, how learned groups compare with each other arm at the same seeds."""
    lines = []
    for learned in found.rows:
        if learned.arm not in ('learned', 'early', 'scratch-learned'):
            continue
        scratch = learned.arm.startswith('scratch')
        for other in found.rows:
            rivals = other.arm not in (learned.arm, 'learned') and other.arm.startswith('scratch') == scratch
            same = other.images == learned.images and other.factor in (learned.factor, 1)
            if rivals and same:
                lines.append(f'- {comparison(found, learned, other)}')
    return ['\n'.join(lines)] if lines else []


def comparison(found: Finished, one: Cell, other: Cell) -> str:
    """One sentence; a difference is beyond the spread where every seed of one arm is above every seed of the other."""
    shared = [seed for seed in found.rows[one] if seed in found.rows[other]]
    title = f'{one.images}, factor {one.factor}: {ARMS[one.arm].label} against {ARMS[other.arm].label}'
    if not shared:
        return f'{title}: no seed of both is done.'
    mine, theirs = ([found.rows[cell][seed]['accuracy'] for seed in shared] for cell in (one, other))
    gaps = [a - b for a, b in zip(mine, theirs)]
    if len(shared) < 3:
        verdict = f'{len(shared)} of 3 seeds say nothing about the spread yet'
    elif min(mine) > max(theirs) or max(mine) < min(theirs):
        verdict = 'beyond the spread of the seeds'
    else:
        verdict = 'within the spread of the seeds'
    each = ' / '.join(f'{gap:+.2f}' for gap in gaps)
    return f'{title}: {fmean(gaps):+.2f} points ({each}), {verdict}.'


def measure(found: Finished, place: Place, rounds: int) -> None:
    """Export one network of each row that has figures, time all in the same rounds, and keep it."""
    networks = {found.runs[cell].name: found.runs[cell].untrained() for cell in found.rows}
    pruned = {name: model for name, model in networks.items() if sparse_layers(model)}
    plain = {name: model for name, model in networks.items() if name not in pruned}
    forms = (STANDARD, NATIVE) if available() else (STANDARD,)
    timings: dict[str, dict[str, float]] = {}
    for one in benchmark(pruned, forms, ('onnxruntime',), IMAGE_SIZE, rounds=rounds, peers=plain):
        form = 'native' if one.form == NATIVE else 'standard'
        timings.setdefault(one.model, {})[form] = round(one.timing.min, 4)
    keep(place, 'latency', rounds, timings)


def picture(found: Finished, place: Place, path: Path) -> None:
    """Accuracy over multiply-adds and, where it was measured, over latency."""
    latency = kept(place, 'latency')
    sets = {cell.images for cell in found.rows}
    points = [
        Point(
            f'{ARMS[cell.arm].label}{f", {cell.images}" if len(sets) > 1 else ""}, factor {cell.factor}',
            found.accuracies(cell),
            next(iter(figures.values()))['mult_adds'],
            min(latency[found.runs[cell].name].values()) if found.runs[cell].name in latency else None,
            f'{ARMS[cell.arm].label}{f", {cell.images}" if len(sets) > 1 else ""}',
            f'factor {cell.factor}' if cell.factor > 1 else 'all weights',
        )
        for cell, figures in found.rows.items()
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_runs(points, path)

"""Training logs of timm, OpenMMLab and the quickstart as curves."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Any, Optional, Union

from ..benchmark.figures import picture

_SKIPPED = ('time', 'data_time', 'memory', 'epoch', 'iter', 'step')
_MOST_CURVES = 6


@dataclass(frozen=True)
class Curve:
    """One quantity over training; ``unit`` is what ``x`` counts."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    unit: str


def read_log(path: Union[str, Path]) -> list[Curve]:
    """Read the curves of timm's ``summary.csv``, OpenMMLab's ``scalars.json``, or JSON with a ``history`` of lists.

    Raises:
        ValueError: it is none of these, or holds no numbers.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} is not a file; give the path of a training log.')
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    curves = _curves(csv.DictReader(text.splitlines()) if Path(path).suffix == '.csv' else _json_rows(text))
    if not curves:
        raise ValueError(
            f'{path} holds no training curve; give the summary.csv of timm, the scalars.json of OpenMMLab '
            f'(work_dirs/*/*/vis_data/), or a JSON file with a history of lists.'
        )
    return curves


def plot_curves(curves: Sequence[Curve], path: Union[str, Path]) -> None:
    """Draw up to six curves, one below the other in two columns."""
    curves = curves[:_MOST_CURVES]
    columns = 2 if len(curves) > 1 else 1
    with picture(path, -(-len(curves) // columns), columns, width=4.7, height=2.4) as (_, axes):
        for axis, curve in zip(axes, curves):
            axis.plot(curve.x, curve.y, marker='.' if len(curve.x) < 60 else None)
            axis.set(title=curve.name, xlabel=curve.unit)
            axis.grid(alpha=0.3)
        for axis in axes[len(curves) :]:
            axis.set_visible(False)


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    """The epochs of a history of lists, or the objects of a log whose last line may be cut off."""
    try:
        whole = json.loads(text)
    except ValueError:
        for line in text.splitlines():
            with suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    yield row
        return
    history = whole.get('history', whole) if isinstance(whole, dict) else {}
    lists = {name: values for name, values in history.items() if isinstance(values, list)}
    for epoch, values in enumerate(zip_longest(*lists.values()), 1):
        yield {**dict(zip(lists, values)), 'epoch': epoch}


def _curves(rows: Iterable[Mapping[str, Any]]) -> list[Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    unit = 'row'
    for i, row in enumerate(rows):
        numbers = {str(name): number for name, value in row.items() if (number := _number(value)) is not None}
        found = next((name for name in ('step', 'epoch') if name in numbers), None)
        unit = found or unit
        for name, number in numbers.items():
            if name not in _SKIPPED:
                points.setdefault(name, []).append((numbers[found] if found else i + 1, number))
    return [Curve(name, *map(tuple, zip(*sorted(pairs))), unit) for name, pairs in points.items()]


def _number(value: Any) -> Optional[float]:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None

"""Training logs of timm, OpenMMLab and the quickstart as curves."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Optional, Union

from .figures import picture

_SKIPPED = ('time', 'data_time', 'memory', 'epoch', 'iter', 'step')
_MOST_CURVES = 6


@dataclass(frozen=True)
class Curve:
    """One quantity over training.

    Attributes:
        name: as the log calls it.
        x: epochs or steps.
        y: values.
        unit: what ``x`` counts.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    unit: str


def read_log(path: Union[str, Path]) -> list[Curve]:
    """Read the curves of a training log.

    Args:
        path: timm's ``summary.csv``, OpenMMLab's ``scalars.json`` (one JSON object a line), or a JSON file with a
            ``history`` of lists as the quickstart writes it.

    Raises:
        ValueError: it is none of these, or holds no numbers.
        OSError: the file cannot be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} is not a file; give the path of a training log.')
    text = Path(path).read_text(encoding='utf-8', errors='replace')
    is_csv = Path(path).suffix == '.csv'
    curves = _from_rows(csv.DictReader(text.splitlines())) if is_csv else _from_json(text)
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
            axis.set_title(curve.name)
            axis.set_xlabel(curve.unit)
            axis.grid(alpha=0.3)
        for axis in axes[len(curves) :]:
            axis.set_visible(False)


def _from_json(text: str) -> list[Curve]:
    try:
        whole = json.loads(text)
    except ValueError:
        return _from_rows(_json_lines(text))
    history = whole.get('history', whole) if isinstance(whole, dict) else {}
    lists = {name: [_number(v) for v in values] for name, values in history.items() if isinstance(values, list)}
    return [
        Curve(name, tuple(range(1, len(values) + 1)), tuple(values), 'epoch')
        for name, values in lists.items()
        if values and None not in values
    ]


def _json_lines(text: str) -> Iterable[dict[str, Any]]:
    """The objects of a log whose last line may be cut off."""
    for line in text.splitlines():
        with suppress(ValueError):
            if isinstance(row := json.loads(line), dict):
                yield row


def _from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Curve]:
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

"""A measurement of many runs, kept beside their results: replaced as a whole, since figures of two do not compare."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnv2_plugin.benchmark import machine

from .results_file import read_rows, write_rows
from .runs import Place

COMMON = ('name', 'machine', 'rounds', 'date', 'command')


def measurement_file(place: Place, kind: str) -> Path:
    """Return the file of a measurement: ``runs.csv`` has ``runs_latency.csv`` beside it."""
    return place.results.with_name(f'{place.results.stem}_{kind}.csv')


def keep(place: Place, kind: str, rounds: int, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Write the figures of each run with the machine, the number of rounds, the date and the command."""
    told = dict(machine=machine(), rounds=rounds, date=time.strftime('%Y-%m-%d', time.gmtime()), command=place.command)
    write_rows(measurement_file(place, kind), [dict(name=name, **row, **told) for name, row in figures.items()])


def kept(place: Place, kind: str) -> dict[str, dict[str, Any]]:
    """Return the figures of each run; empty where nothing was measured."""
    rows = read_rows(measurement_file(place, kind))
    return {row['name']: {key: value for key, value in row.items() if key not in COMMON} for row in rows}

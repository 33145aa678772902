"""A measurement of many runs, kept beside their results: replaced as a whole, since figures of two do not compare."""

import json
import time
from typing import Any

from ..benchmark import machine
from ..checkpoints import atomic_path
from .runs import Place


def keep(place: Place, file: str, rounds: int, **figures: Any) -> dict[str, Any]:
    """Write figures with the machine, the number of rounds, the date and the command; returns what was written."""
    date = time.strftime('%Y-%m-%d', time.gmtime())
    found = dict(**figures, machine=machine(), rounds=rounds, date=date, command=place.command)
    with atomic_path(place.results / file) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + '\n')
    return found


def kept(place: Place, file: str, key: str) -> dict[str, Any]:
    """What was written under a key; empty where nothing was measured."""
    path = place.results / file
    return json.loads(path.read_text())[key] if path.exists() else {}

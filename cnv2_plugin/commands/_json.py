"""Figures as JSON, in a file or on stdout."""

import json
import sys
from typing import Any


def write_json(path: str, content: Any) -> None:
    """Write plain values so that the file appears whole or not at all; ``-`` prints them to stdout."""
    text = json.dumps(content, indent=1) + '\n'
    if path == '-':
        sys.stdout.write(text)
        return
    from ..checkpoints import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text)

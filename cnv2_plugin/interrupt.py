"""Ctrl-C while ``cnv2`` still imports: libraries would wrap or swallow the exception, so the process ends at once."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Optional


def end_at_interrupt() -> None:
    """End the process with one line at Ctrl-C, if it is the command ``cnv2`` and nobody else handles the signal."""
    if (
        _is_the_command()
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, _end)


def raise_at_interrupt() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, which a command cleans up after."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def tell_interrupted() -> int:
    """Print the line, and return the exit status of an interrupted command."""
    print('cnv2: interrupted', file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def was_interrupted(error: Optional[BaseException]) -> bool:
    """Return whether an error is an interrupt, or was raised from one by a library."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def _is_the_command() -> bool:
    before_main = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return Path(sys.argv[0]).stem == 'cnv2' or sys.argv[0] == '-m' and before_main[-2:] == ['-m', 'cnv2_plugin']


def _end(number: int, frame: Optional[FrameType]) -> None:
    os._exit(tell_interrupted())

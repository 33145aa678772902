"""The one core of OpenVINO that a process has."""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openvino import Core


@lru_cache(maxsize=1)
def openvino_core() -> 'Core':
    """The core, kept until the process ends.

    Its plugin for the processor takes over the alternate signal stack of the thread that makes it, and gives back one
    that is freed where another plugin was made meanwhile (2026.4): the next signal with a handler in Python then ends
    the process without a word.
    """
    from openvino import Core

    return Core()

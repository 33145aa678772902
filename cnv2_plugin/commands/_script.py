"""Runs a script or a module as ``python`` itself would."""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from ..sparsify.script import SparsificationError
from ._usage import UsageError

_OURS = (__file__, runpy.__file__, '<frozen runpy')


def run_script(script: str, arguments: Sequence[str], is_module: bool = False) -> int:
    """Run a script in this process, as ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``.

    Args:
        script: file, or folder or zip file with a ``__main__.py``; name of a module with ``is_module``.
        arguments: of the script.
        is_module: as ``python -m``.

    Returns:
        0, or 1 after an uncaught exception, whose traceback is printed. ``SystemExit`` passes, with the exit code of
        the script.

    Raises:
        UsageError: if there is no such file.
        SparsificationError: raised by a step of the training inside the script.
    """
    if not is_module and not Path(script).exists():
        raise UsageError(f'there is no script {script}; give the path of a file, or -m and the name of a module.')
    argv, path = sys.argv, sys.path[0]
    sys.argv = [script, *arguments]
    sys.path[0] = os.getcwd() if is_module else str(Path(script).resolve().parent)
    try:
        if is_module:
            runpy.run_module(script, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(script, run_name='__main__')
        return 0
    except (KeyboardInterrupt, SparsificationError):
        raise
    except Exception as error:
        return _print_as_python_does(error)
    finally:
        sys.argv, sys.path[0] = argv, path


def _print_as_python_does(error: Exception) -> int:
    traceback = error.__traceback__
    while traceback and traceback.tb_next and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
        traceback = traceback.tb_next
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    return 1

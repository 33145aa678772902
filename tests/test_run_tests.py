"""What tools/run_tests.sh makes of a test process that dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIES_ONCE = """
import os, pathlib, signal

def test_it():
    seen = pathlib.Path('seen')
    if not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""
DIES = 'import os, signal\n\ndef test_it():\n    os.kill(os.getpid(), signal.SIGKILL)\n'
FAILS = 'def test_other():\n    assert False\n'
RUN = 'set -euo pipefail; say() { echo "== $*"; }; . "$ROOT/tools/_pytest.sh"; test_in_two_processes; echo passed'


@pytest.mark.needs('xdist')
@pytest.mark.parametrize(
    ('files', 'passes', 'again'),
    [([DIES_ONCE], True, True), ([DIES], False, True), ([FAILS], False, False), ([DIES_ONCE, FAILS], False, False)],
    ids=['dies once', 'dies always', 'fails', 'both'],
)
def test_only_what_died_runs_again(files, passes, again, tmp_path):
    for i, text in enumerate(files):
        (tmp_path / f'test_{i}.py').write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTEST')}
    done = subprocess.run(
        ['bash', '-c', RUN], cwd=tmp_path, env={**environment, 'PYTHON': sys.executable, 'ROOT': str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ('passed\n' in done.stdout[-8:]) == (done.returncode == 0) == passes, done.stdout
    assert ('once more, alone' in done.stdout) == again

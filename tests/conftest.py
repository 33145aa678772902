"""Tests that need a package or a compiler are skipped, with its name, where it is missing."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import has_compiler, lacks_kernels

ROOT = Path(__file__).parents[1]
COMPLETE = bool(os.environ.get('CNV2_ALL_PACKAGES'))
"""Whether all packages of the requirements were installed (run_tests.sh): then none may be missing."""
ELSEWHERE = 'mim', 'mmpose', 'transformers'
"""Packages that these requirements do not name."""
HERE = {'c++': has_compiler, 'kernels': lambda: not lacks_kernels()}
"""What is no package: how to tell whether it is there."""


def pytest_runtest_setup(item):
    """Read the marker ``needs``."""
    for marker in item.iter_markers('needs'):
        missing = [name for name in marker.args if not (HERE[name]() if name in HERE else find_spec(name))]
        if missing:
            fails = COMPLETE and not set(missing) <= HERE.keys()
            (pytest.fail if fails else pytest.skip)(f'there is no {", no ".join(missing)} here')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail where a package is missing that was to be installed."""
    _fail_without_package((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Fail where a package is missing that was to be installed."""
    _fail_without_package((yield).get_result())


def _fail_without_package(report):
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ''
    package = re.search(r"could not import '(\w+)", reason)
    if COMPLETE and package and package[1] not in ELSEWHERE:
        report.outcome, report.longrepr = 'failed', f'{reason}; requirements/ names {package[1]}, so it has to be here'


@pytest.fixture(scope='session')
def platform_wheel(tmp_path_factory):
    """The wheel with kernels, built once for all test processes, from a copy of the checkout."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base) / 'platform_wheel'
    folder.mkdir(exist_ok=True)
    unwanted = ('.git', 'data', 'work_dirs', '.venv*', 'build', 'dist', '*.egg-info', '__pycache__', '.*_cache', '*.so')
    with (folder / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob('*.whl')):
            shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=shutil.ignore_patterns(*unwanted))
            options = ['--quiet', '--no-build-isolation', '--no-deps', '-w', folder]
            subprocess.run([sys.executable, '-m', 'pip', 'wheel', *options, folder / 'source'], check=True)
    (wheel,) = folder.glob('*.whl')
    return wheel

"""The stacks that tools/run_tests.sh knows: their versions keep what setup.py promises, their errors are sentences."""

import functools
import os
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
STACKS = sorted(path.stem for path in (ROOT / 'requirements/stacks').glob('*.txt'))


@functools.cache
def settings(stack):
    """Version of Python and extras of a stack, as the script that installs it sets them."""
    script = '. tools/_stack.sh && stack_settings "$1" && echo "$STACK_PYTHON" && echo "$EXTRAS"'
    done = subprocess.run(['bash', '-c', script, 'bash', stack], cwd=ROOT, capture_output=True, text=True, check=True)
    python, extras = done.stdout.splitlines()
    return python, extras.split(',')


def lines(path):
    return [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith('#')]


def canonical(name):
    return re.sub('[-_.]+', '-', name).lower()


def pins(stack):
    pairs = [line.split('==') for line in lines(f'requirements/stacks/{stack}.txt')]
    return {canonical(name): Version(version) for name, version in pairs}


def promised(stack):
    return [Requirement(line) for name in ['core', *settings(stack)[1]] for line in lines(f'requirements/{name}.txt')]


def test_every_list_of_versions_is_a_stack():
    assert STACKS == ['oldest', 'onedl', 'timm-only']
    assert all(Version(settings(stack)[0]) >= Version('3.10') for stack in STACKS)


@pytest.mark.parametrize('stack', STACKS)
def test_versions_are_among_those_that_setup_promises(stack):
    versions = pins(stack)
    for requirement in promised(stack):
        assert versions[canonical(requirement.name)] in requirement.specifier, requirement


def test_oldest_is_at_the_lower_bounds_of_its_extras(tmp_path):
    versions = pins('oldest')
    for requirement in promised('oldest'):
        (bound,) = requirement.specifier
        assert bound.operator == '>='
        found = versions[canonical(requirement.name)]
        assert Version(found.base_version) == Version(bound.version), requirement
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '-e', tmp_path], cwd=ROOT, check=True)
    metadata = Parser().parsestr((tmp_path / 'cnv2_plugin.egg-info/PKG-INFO').read_text())
    assert metadata['Requires-Python'] == f'>={settings("oldest")[0]}'


def test_timm_only_has_today_s_versions_and_neither_openmmlab_nor_onnx():
    versions = pins('timm-only')
    for name in ('torch', 'torchvision', 'timm'):
        assert f'{name}=={versions[name]}' in lines('requirements/tested.txt')
    assert not [name for name in versions if name.startswith(('mm', 'onedl', 'onnx', 'openvino'))]


def run_script(folder, *arguments, **environment):
    """tools/run_tests.sh in a copy of what it reads."""
    shutil.copytree(ROOT / 'tools', folder / 'tools')
    shutil.copytree(ROOT / 'requirements', folder / 'requirements')
    shutil.copytree(ROOT / 'cnv2_plugin/kernels/csrc', folder / 'cnv2_plugin/kernels/csrc')
    shutil.copy(ROOT / 'setup.py', folder)
    return subprocess.run(
        ['bash', 'tools/run_tests.sh', *arguments], cwd=folder, env=dict(os.environ, **environment),
        capture_output=True, text=True,
    )  # fmt: skip


PYTHON = """#!/bin/sh
case "$*" in
    '-m pytest'*) printf '%s\\t' PYTEST "$@" && echo ;;
    *sys.prefix*) echo . ;;
esac
"""
"""A Python in which everything is installed and passes; it prints what pytest is asked for."""


@pytest.mark.parametrize(
    ('arguments', 'runs'),
    [
        ([], [[], ['-m', 'slow']]),
        (['-k', 'cost'], [['-k', 'cost'], ['-m', 'slow', '-k', 'cost']]),
        (['--maxfail=1'], [['--maxfail=1'], ['-m', 'slow', '--maxfail=1']]),
        (['-m', 'smoke'], [['-m', 'smoke']]),
        (['-x', '-mslow'], [['-x', '-mslow']]),
    ],
)
def test_markers_of_one_s_own_are_run_once(arguments, runs, tmp_path):
    (tmp_path / 'bin').mkdir()
    for name, text in (('python', PYTHON), ('apt-get', '#!/bin/sh\n')):
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)
    environment = dict(PATH=f'{tmp_path / "bin"}:{os.environ["PATH"]}', VIRTUAL_ENV=str(tmp_path))
    result = run_script(tmp_path / 'copy', *arguments, **environment)
    assert result.returncode == 0, result.stderr
    asked = [line.split('\t')[1:-1] for line in result.stdout.splitlines() if line.startswith('PYTEST')]
    assert len(asked) == len(runs)
    for given, run in zip(asked, runs):
        assert given[len(given) - len(run) :] == run, 'what is asked for comes last'
        assert any(argument.startswith('-m') for argument in run) or not {'slow', 'smoke'} & set(given)


@pytest.mark.parametrize('arguments', [['--stack', 'newest'], ['--stack=newest'], ['--stack']])
def test_unknown_stack(arguments, tmp_path):
    result = run_script(tmp_path, *arguments)
    assert result.returncode == 2
    assert all(stack in result.stderr for stack in ('openmmlab', *STACKS))


def test_missing_python_is_told_apart_from_failing(tmp_path):
    (tmp_path / 'bin').mkdir()
    for name in ('bash', 'dirname', 'cat', 'cksum'):
        (tmp_path / 'bin' / name).symlink_to(shutil.which(name))
    environment = dict(PATH=str(tmp_path / 'bin'), PYENV_ROOT=str(tmp_path), BASE_PYTHON='')
    result = run_script(tmp_path / 'copy', '--stack', 'oldest', **environment)
    assert result.returncode == 75
    assert 'needs Python 3.10' in result.stderr and 'BASE_PYTHON' in result.stderr
    assert not list((tmp_path / 'copy').glob('.venv*'))

"""``python -m cnv2_plugin``, closed streams, gone readers, locales without the letters of a path, and Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest

COMMAND = [sys.executable, '-W', 'ignore', '-m', 'cnv2_plugin']
DEPLOY = ['deploy', 'condensenet_50_cifar', '--input', '3', '32', '32', '--out']


def started(arguments, folder, **options):
    environment = {**os.environ, 'PYTHONPATH': os.getcwd(), 'OMP_NUM_THREADS': '1', **options.pop('env', {})}
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, **options)


def test_the_package_runs_as_a_module_and_a_closed_output_loses_no_file(tmp_path):
    process = started([*DEPLOY, 'x.pth'], tmp_path, preexec_fn=lambda: os.close(1))
    assert process.communicate()[1] == b'' and process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


@pytest.mark.slow
def test_a_reader_that_has_gone_gets_no_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = started(['cost', 'condensenetv2_a'], tmp_path, stdout=write)
    os.close(write)
    assert process.communicate()[1] == b'' and process.returncode in (1, 141)


@pytest.mark.skipif(sys.platform == 'win32', reason='needs a locale')
def test_a_path_that_the_locale_does_not_know(tmp_path):
    locale = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    process = started([*DEPLOY, 'größe.pth'], tmp_path, env=locale, stdout=subprocess.PIPE)
    error = process.communicate()[1].decode()
    assert process.returncode == 2 and 'PYTHONUTF8' in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('seconds', [0.3, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_an_interrupt_at_any_time_gives_one_line(seconds, tmp_path):
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - background jobs ignore the signal
    process = started([*DEPLOY, 'x.pth'], tmp_path, stdout=subprocess.PIPE, preexec_fn=heard)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert 'Traceback' not in error and error in ('cnv2: interrupted\n', '')
    assert process.returncode in (0, 130, -signal.SIGINT)

"""kill -9 in the middle of writes: the old file or the new one, never a broken one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCH = dict(layers=[1, 1], growth=[8, 8], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=3, sparse_factor=2)


def is_whole(kind: str, path: Path) -> bool:
    if kind == 'onnx':
        import onnx

        onnx.checker.check_model(str(path), full_check=True)
        return True
    from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint

    state = find_state_dict(load_checkpoint(path))
    return ('stages.0.layers.0.conv_1.mask' in state) == (kind == 'checkpoint')


def kill_while_writing(kind: str, path: Path, kills: int) -> None:
    rng = random.Random(0)
    command = [sys.executable, str(ROOT / 'tests/faults/writer.py'), kind, str(path)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=path.parent)
        try:
            assert process.stdout.readline().strip() == b'ready'
            time.sleep(rng.uniform(0.0, 0.15))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        assert is_whole(kind, path)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'name'), [('checkpoint', 'x.pth'), ('deployed', 'x.safetensors'), ('onnx', 'x.onnx')])
def test_a_killed_writer_leaves_a_whole_file(kind, name, tmp_path):
    kill_while_writing(kind, tmp_path / name, kills=2)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs os.fork')
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('exists', [True, False])
def test_a_writer_killed_at_every_point_of_the_write(tmp_path, suffix, exists):
    """A child kills itself before each of the calls that a write is made of; the parent looks at what is left."""
    import torch

    from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint, save_checkpoint

    old, new = {'w': torch.zeros(8)}, {'w': torch.ones(8)}
    path = tmp_path / f'x.{suffix}'
    last = 'tempfile.TemporaryDirectory.cleanup'
    for point in ('tempfile.mkdtemp', 'os.fsync', 'pathlib.Path.replace', last):
        path.unlink(missing_ok=True)
        if exists:
            save_checkpoint(old, path)
        child = os.fork()
        if child == 0:
            die_at(point)
            save_checkpoint(new, path)
            os._exit(3)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, point
        if not path.exists():
            assert not exists and point != last
            continue
        found = find_state_dict(load_checkpoint(path))['w']
        assert torch.equal(found, new['w'] if point == last else old['w'])


def die_at(point: str) -> None:
    """Replace a function of the standard library by one that kills the process."""
    import importlib

    parts = point.split('.')
    owner = importlib.import_module(parts[0])
    for part in parts[1:-1]:
        owner = getattr(owner, part)
    setattr(owner, parts[-1], lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))

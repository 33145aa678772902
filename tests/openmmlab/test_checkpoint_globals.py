"""Weights-only loading of mmengine's checkpoints, and of nothing more."""

import io
import os
import pickle
import subprocess
import sys

import numpy
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from cnv2_plugin.toolkits.openmmlab.safe_loading import allow_mmengine_checkpoints, mmengine_globals

from .stand_ins import runner_config, train


@pytest.fixture(autouse=True)
def admitted():
    """The forks' loader takes away what it admits, ours with it, so it is admitted anew."""
    allow_mmengine_checkpoints()


def reload(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_checkpoint_of_a_real_run_loads_and_needs_nothing_more(tmp_path):
    train(runner_config(tmp_path, custom_hooks=[]))
    path = tmp_path / 'epoch_4.pth'
    checkpoint = torch.load(path, weights_only=True)
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and history.data[0].shape == (16,)
    assert history.mean() == pytest.approx(history.data[0].mean())
    needed = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    assert needed == set()


@pytest.mark.slow
def test_without_us_such_a_checkpoint_is_refused(tmp_path):
    hub = MessageHub('refused')
    hub.update_scalar('train/loss', numpy.float64(1.5))
    torch.save(hub.state_dict(), tmp_path / 'hub.pth')
    script = f"""
import pickle, torch, mmengine.logging
try:
    torch.load({str(tmp_path / 'hub.pth')!r})
except pickle.UnpicklingError:
    print('refused')
import cnv2_plugin
print(type(torch.load({str(tmp_path / 'hub.pth')!r})['log_scalars']['train/loss']).__name__)
"""
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.stdout.split() == ['refused', 'HistoryBuffer'], result.stderr


@pytest.mark.parametrize('dtype', ['bool', 'int8', 'int64', 'uint8', 'float16', 'float32', 'float64'])
def test_numpy_numbers_come_back(dtype):
    array = numpy.arange(6).reshape(2, 3).astype(dtype)
    value = reload(dict(array=array, scalar=array[1, 1]))
    assert value['array'].dtype == array.dtype and (value['array'] == array).all()
    assert value['scalar'] == array[1, 1] and type(value['scalar']) is type(array[1, 1])


class Foreign:
    """A class of the user's."""


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


FOREIGN = {
    'class': Foreign(),
    'system': Call(os.system, 'true'),
    'eval': Call(eval, '1'),
    'getattr of numpy': Call(getattr, numpy.ndarray, 'tofile'),
    'getattr of a dunder': Call(getattr, HistoryBuffer, '__init__'),
    'setattr': Call(setattr, HistoryBuffer, 'mean', 1),
    'numpy load': Call(numpy.load, 'x.npy'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_everything_else_is_still_refused(name):
    with pytest.raises(pickle.UnpicklingError):
        reload(dict(state_dict={}, message_hub=FOREIGN[name]))


def test_getattr_itself_is_not_on_the_list():
    allowed = [entry[0] if isinstance(entry, tuple) else entry for entry in mmengine_globals()]
    assert getattr not in allowed
    assert not any(getattr(entry, '__module__', '') in ('os', 'builtins', 'subprocess') for entry in allowed)


def test_resume_continues_optimizer_schedule_and_history(tmp_path):
    whole = train(runner_config(tmp_path / 'whole', epochs=4))
    cfg = runner_config(tmp_path / 'again', epochs=4, load_from=str(tmp_path / 'whole/epoch_2.pth'), resume=True)
    again = train(cfg)
    for (name, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), name

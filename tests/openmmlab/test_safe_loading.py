"""No checkpoint that our commands read can run code, whichever way the toolkit's loader would go."""

import functools
import http.server
import os
import pickle
import threading

import numpy
import pytest
import torch
from mmengine.runner import CheckpointLoader

from cnv2_plugin.checkpoints import CheckpointError
from cnv2_plugin.cli import main
from cnv2_plugin.toolkits.openmmlab.safe_loading import safe_loading

from .stand_ins import runner_config, train

FORCE = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a finished run, and its checkpoint."""
    folder = tmp_path_factory.mktemp('trained')
    train(runner_config(folder, epochs=1, custom_hooks=[]))
    return folder / 'epoch_1.pth'


@pytest.fixture
def payload(trained, tmp_path):
    """The same checkpoint with something that makes a folder when it is unpickled."""
    made = tmp_path / 'executed'
    return hostile(trained, tmp_path / 'payload.pth', Call(os.mkdir, str(made))), made


def hostile(trained, path, value):
    checkpoint = torch.load(trained, weights_only=False)
    torch.save({**checkpoint, 'extra': value}, path)
    return path


def config_file(folder, **options):
    """A config to train on, in the language of files, with the data of ``stand_ins``."""
    cfg = runner_config(folder / 'work', epochs=2, custom_hooks=[], **options)
    cfg.custom_imports = dict(imports=['tests.openmmlab.stand_ins'], allow_failed_imports=False)
    cfg.dump(folder / 'config.py')
    return str(folder / 'config.py')


def sentences(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 ')]


def test_auto_resume_refuses_and_names_the_file(payload, tmp_path, capsys):
    path, made = payload
    config = config_file(tmp_path)
    (tmp_path / 'work').mkdir(exist_ok=True)
    (tmp_path / 'work/last_checkpoint').write_text(str(path))
    assert main(['train', config, '--work-dir', str(tmp_path / 'work'), '--resume']) == 1
    (sentence,) = sentences(capsys)
    assert 'payload.pth' in sentence and '--trust' in sentence and not made.exists()


@pytest.fixture
def pretrained_config(payload, tmp_path):
    config = config_file(tmp_path)
    with open(config, 'a') as file:
        init = dict(type='Pretrained', checkpoint=str(payload[0]), prefix='backbone.')
        file.write(f'model["backbone"]["init_cfg"] = {init!r}\n')
    return config


def test_pretrained_refuses_and_names_the_file(pretrained_config, payload, capsys):
    assert main(['train', pretrained_config]) == 1
    (sentence,) = sentences(capsys)
    assert 'payload.pth' in sentence and '--trust' in sentence and not payload[1].exists()


def test_only_trust_lets_it_run(pretrained_config, payload):
    assert main(['train', pretrained_config, '--no-validate', '--trust']) == 0
    assert payload[1].is_dir()


@pytest.mark.parametrize('name', FORCE)
def test_the_variables_of_pytorch_open_nothing(name, pretrained_config, payload, monkeypatch, capsys):
    monkeypatch.setenv(name, '1')
    assert main(['train', pretrained_config]) == 1
    assert not payload[1].exists() and os.environ[name] == '1'


def test_attributes_of_admitted_classes_are_refused(trained, tmp_path, capsys):
    """The fork's loader admits ``getattr``, by which a file reaches what it likes."""
    path = hostile(trained, tmp_path / 'attribute.pth', Call(getattr, numpy.ndarray, 'tofile'))
    assert main(['test', config_file(tmp_path), str(path)]) == 1
    assert 'attribute.pth' in sentences(capsys)[0]
    with safe_loading(), pytest.raises(CheckpointError, match='attribute.pth'):
        CheckpointLoader.load_checkpoint(str(path))


def test_downloads_are_weights_only(payload, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/payload.pth'
        with safe_loading(), pytest.raises(CheckpointError, match='payload.pth'):
            CheckpointLoader.load_checkpoint(url)
        server.shutdown()
    assert (tmp_path / 'torch').exists() and not payload[1].exists()


def test_what_is_read_otherwise_is_weights_only_too(payload):
    with pytest.raises(CheckpointError, match='holds Python objects'), safe_loading():
        torch.load(payload[0], weights_only=False)
    assert not payload[1].exists()


def test_afterwards_everything_is_as_before(trained, payload):
    before = CheckpointLoader.load_checkpoint, [os.environ.get(name) for name in FORCE]
    with safe_loading():
        assert CheckpointLoader.load_checkpoint(str(trained))['message_hub']
    assert before == (CheckpointLoader.load_checkpoint, [os.environ.get(name) for name in FORCE])
    assert torch.load(trained, weights_only=True)['message_hub']
    with pytest.raises(pickle.UnpicklingError):
        torch.load(payload[0], weights_only=True)


def test_our_own_checkpoints_train_test_and_deploy(trained, tmp_path, capsys):
    """What the toolkit wrote is read back by every command without --trust."""
    config = config_file(tmp_path)
    assert main(['train', config, '--work-dir', str(tmp_path / 'work'), '--no-validate', '--resume', str(trained)]) == 0
    assert (tmp_path / 'work/epoch_2.pth').is_file()

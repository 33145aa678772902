"""No command writes over what it reads, by whatever name the file is given."""

import os

import pytest
import timm

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.cli import main

from .helpers import finish_pruning

ARCH = ('--arch', 'condensenet_50_cifar')
COMMANDS = {
    'deploy': ['deploy', 'IN', *ARCH, '--out', 'OUT'],
    'deploy beside others': ['deploy', 'IN', *ARCH, '--out', 'x.safetensors', 'OUT'],
    'convert-keys': ['convert-keys', 'IN', 'OUT', '--to', 'mmpretrain'],
    'import-official': ['import-official', 'IN', '--out', 'OUT'],
    'import-official, deployed': ['import-official', 'IN', '--out', 'x.pth', '--deploy-out', 'OUT'],
    'sparsity': ['sparsity', 'IN', '--csv', 'OUT'],
    'benchmark': ['benchmark', 'condensenet_50_cifar', '--checkpoint', 'IN', '--json', 'OUT'],
    'test': ['test', 'config.py', 'IN', '--out', 'OUT'],
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = finish_pruning(timm.create_model('condensenet_50_cifar')).eval()
    save_checkpoint(model.state_dict(), tmp_path / 'in.pth', dict(arch='condensenet_50_cifar'))
    os.symlink('in.pth', 'symbolic.pth')
    os.link('in.pth', 'hard.pth')
    (tmp_path / 'config.py').write_text('model = dict()\n')
    (tmp_path / 'folder').mkdir()
    return tmp_path / 'in.pth'


@pytest.mark.parametrize('command', COMMANDS)
def test_an_output_is_no_input(command, trained, capsys):
    before = trained.read_bytes(), sorted(os.listdir())
    for out in ('in.pth', './folder/../in.pth', str(trained), 'symbolic.pth', 'hard.pth'):
        arguments = [dict(IN='in.pth', OUT=out).get(part, part) for part in COMMANDS[command]]
        assert main(arguments) in (1, 2), out
        error = capsys.readouterr().err
        assert 'in.pth' in error and 'overwrite' in error and error.count('\n') == 1
        assert (trained.read_bytes(), sorted(os.listdir())) == before


def test_twins_by_case_are_one_file(trained, capsys):
    assert main(['deploy', 'in.pth', *ARCH, '--out', 'x.pth', 'X.pth']) == 1
    assert 'twice' in capsys.readouterr().err and not os.path.exists('x.pth')


@pytest.mark.slow
def test_predict_draws_over_no_image(tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    from PIL import Image

    from cnv2_plugin.deploy import export_onnx

    image, file = tmp_path / 'a.png', tmp_path / 'x.onnx'
    Image.new('RGB', (32, 32)).save(image)
    export_onnx(timm.create_model('condensenet_50_cifar').eval(), file, (3, 32, 32), 1, optimize=False)
    before = image.read_bytes()
    assert main(['predict', str(file), str(image), '--out', str(tmp_path)]) == 1
    assert 'a.png' in capsys.readouterr().err and image.read_bytes() == before

"""``cnv2 deploy`` of trainings that ended early, and what deployed files say of the checkpoint that they are from."""

import json
import subprocess
import sys

import numpy
import pytest
import timm
import torch

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import load_checkpoint, save_checkpoint
from cnv2_plugin.cli import main
from tests.helpers import finish_pruning, randomize_norms

NAME = 'condensenet_50_cifar'
SMALL = ['--input', '3', '32', '32']


def half_pruned(path):
    torch.manual_seed(0)
    model = randomize_norms(timm.create_model(NAME))
    for layer in model.sparse_layers():
        layer.prune_to(1)
    save_checkpoint(model.state_dict(), path)
    return model.eval()


def test_missing_stages_are_named_and_pruned_where_asked(tmp_path, capsys):
    from PIL import Image

    model, path, out = half_pruned(tmp_path / 'half.pth'), tmp_path / 'half.pth', tmp_path / 'out.pth'
    command = ['deploy', str(path), '--arch', NAME, *SMALL, '--out', str(out)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert (
        all(word in error for word in ('stage', 'stages.0.layers.0.conv_1', 'stage 1 of 3', '--finish'))
        and not out.exists()
    )
    assert main([*command, '--images', str(tmp_path)]) == 2 and '--finish' in capsys.readouterr().err
    assert main([*command, '--finish', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)['tables'][0]['rows']
    assert 'random images' in rows[0][0] and rows[0][1].endswith('%') and len(rows) == 1
    plain = load_checkpoint(out)['state_dict']
    expected = finish_pruning(model).state_dict()
    assert torch.equal(plain['norm.0.running_mean'], expected['norm.0.running_mean'])
    images = tmp_path / 'images'
    images.mkdir()
    noise = numpy.random.default_rng(0)
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=numpy.uint8)).save(images / f'{i}.png')
    assert main([*command, '--finish', '--images', str(images), '--json']) == 0
    rows = json.loads(capsys.readouterr().out)['tables'][0]['rows']
    assert '6 images' in rows[0][0] and 'statistics' in rows[1][0]
    assert not torch.equal(load_checkpoint(out)['state_dict']['norm.0.running_mean'], plain['norm.0.running_mean'])


CONFIG = """
model = dict(
    backbone=dict(type='CondenseNet'),
    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=36, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs')]))
"""


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime', 'mmengine')
def test_an_onnx_file_says_what_its_checkpoint_says(tmp_path):
    import onnx

    state = finish_pruning(timm.create_model(NAME)).state_dict()
    meta = dict(cfg=CONFIG, dataset_meta=dict(classes=tuple(f'c{i}' for i in range(10))))
    torch.save(dict(state_dict=state, meta=meta), tmp_path / 'x.pth')
    outs = [str(tmp_path / name) for name in ('y.onnx', 'y.safetensors')]
    assert main(['deploy', str(tmp_path / 'x.pth'), '--arch', NAME, *SMALL, '--out', *outs]) == 0
    assert main(['deploy', outs[1], *SMALL, '--out', str(tmp_path / 'again.onnx')]) == 0
    for name in ('y.onnx', 'again.onnx'):
        said = {p.key: p.value for p in onnx.load(tmp_path / name).metadata_props}
        assert json.loads(said['classes']) == [f'c{i}' for i in range(10)]
        assert json.loads(said['mean']) == [1.0, 2.0, 3.0] and json.loads(said['std']) == [4.0, 5.0, 6.0]
        assert said['channel_order'] == 'RGB' and said['range'] == '255' and said['interpolation'] == 'bicubic'
        assert json.loads(said['resize']) == ['short', 36] and json.loads(said['size']) == [3, 32, 32]
        assert said['version'] == cnv2_plugin.__version__


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_model_of_one_channel_has_one_mean(tmp_path):
    import onnx

    arguments = ['deploy', NAME, '--model-kwargs', 'in_chans=1', '--input', '1', '32', '32']
    assert main([*arguments, '--out', str(tmp_path / 'x.onnx')]) == 0
    said = {
        p.key: json.loads(p.value) for p in onnx.load(tmp_path / 'x.onnx').metadata_props if p.key in ('mean', 'std')
    }
    assert len(said['mean']) == len(said['std']) == 1


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_full_disk_is_a_sentence(tmp_path):
    """A limit on the size of files makes the system's own write fail in the middle."""
    code = (
        'import resource, signal, sys\n'
        'from cnv2_plugin.cli import main\n'
        'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n'
        'ends = [main(["deploy", *sys.argv[1:], "--out", name]) for name in ("x.pt2", "x.onnx", "x.pth")]\n'
        'print(ends)\n'
    )
    command = [sys.executable, '-W', 'ignore', '-c', code, NAME, *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == '[1, 1, 1]\n' and done.stderr.count('\n') == 3, done.stderr
    assert 'free space' in done.stderr and not list(tmp_path.iterdir())

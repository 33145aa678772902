"""``cnv2 import-official``: what it writes loads strictly, says what it is, and is there whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint
from cnv2_plugin.cli import main

from ..helpers import relative_difference
from ..reference import official

NET = official.small('74-g8', growth=(8, 16, 16, 16, 32))


@pytest.fixture
def released(tmp_path):
    state = official.convert(official.random_state_dict(NET), NET, drop_classifier_inputs=True)
    torch.save(official.converted_file(state, NET), tmp_path / 'released.pth.tar')
    return tmp_path / 'released.pth.tar', state


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_both_forms_are_written(released, suffix, tmp_path, capsys):
    path, state = released
    out, deployed = tmp_path / f'out{suffix}', tmp_path / f'deployed{suffix}'
    options = ['--out', str(out), '--deploy-out', str(deployed), '--arch', 'stem_stride=2']
    assert main(['import-official', str(path), *options]) == 0
    shown = capsys.readouterr().out
    for text in ('condensenet', 'converted', '7 (finished)', '50%', 'max relative difference'):
        assert text in shown
    x = torch.randn(2, 3, 64, 64)
    expected = official.forward(state, x, NET)
    for file in (out, deployed):
        content = load_checkpoint(file)
        meta = content['meta']
        model = timm.create_model(meta['model_name'], **json.loads(meta['model_kwargs'])).eval()
        model.load_state_dict(find_state_dict(content), strict=True)
        assert model.deploy == (file == deployed)
        with torch.no_grad():
            assert relative_difference(model(x), expected) < 1e-5
    assert {p.name for p in tmp_path.iterdir()} == {path.name, out.name, deployed.name}


def test_a_file_from_before_the_last_stage_has_no_deployed_form(tmp_path, capsys):
    net = official.small('110-cifar', growth=(8, 8, 8))
    path = tmp_path / 'file.pth'
    torch.save(official.training_file(official.random_state_dict(net, 2), net), path)
    assert main(['import-official', str(path), '--out', str(tmp_path / 'out.pth')]) == 0
    assert 'training' in capsys.readouterr().out
    options = ['--out', str(tmp_path / 'again.pth'), '--deploy-out', str(tmp_path / 'deployed.pth')]
    assert main(['import-official', str(path), *options]) == 1
    assert 'stage 2 of 7' in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {'file.pth', 'out.pth'}


@pytest.mark.parametrize(
    'options,message',
    [
        (['--out', 'out.bin'], 'ends in .bin'),
        (['--out', 'nowhere/out.pth'], 'does not exist'),
        (['--out', 'out.pth'], 'nothing in the file tells stem_stride'),
        (['--out', 'out.pth', '--arch', 'width=3'], 'no fields width'),
        (['--out', 'out.pth', '--arch', 'stem_stride=0'], 'stem_stride=0'),
    ],
)
def test_bad_options(released, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['import-official', str(released[0]), *options]) == (2 if 'ends in' in message else 1)
    *said, error = capsys.readouterr().err.splitlines()
    assert message in error and all('took raw weights' in line for line in said)
    assert [p.name for p in tmp_path.iterdir()] == [released[0].name]


@pytest.mark.parametrize('arch', ['stem_stride', 'stem_stride=two words', '3=4'])
def test_usage_errors(released, arch, capsys):
    with pytest.raises(SystemExit) as error:
        main(['import-official', str(released[0]), '--out', 'out.pth', '--arch', arch])
    assert error.value.code == 2


@pytest.mark.slow
def test_script(released, tmp_path):
    script = Path(__file__).parents[2] / 'tools' / 'import_official.py'
    command = [
        sys.executable,
        str(script),
        str(released[0]),
        '--out',
        str(tmp_path / 'out.pth'),
        '--arch',
        'stem_stride=2',
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out.pth').is_file()

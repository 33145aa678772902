"""``cnv2`` and tools/*.py as they are typed."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint, save_checkpoint
from cnv2_plugin.cli import COMMANDS, main
from tests.helpers import finish_pruning, randomize_norms

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp('trained') / 'a.pth'
    model = finish_pruning(randomize_norms(timm.create_model('condensenetv2_a', num_classes=10)))
    save_checkpoint(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ('name', 'figures'),
    [
        ('condensenetv2_a', ['3,350,244', '2.04', '45.87']),
        ('condensenetv2_b', ['6,311,412', '3.59', '146.47']),
        ('condensenetv2_c', ['15,097,752', '6.18', '309.74']),
    ],
)
def test_cost_prints_the_published_figures(name, figures, capsys):
    assert main(['cost', name]) == 0
    printed = capsys.readouterr().out
    assert all(figure in printed for figure in figures)


def test_cost_options(capsys):
    assert main(['cost', 'condensenetv2_a', '--deploy', '--input', '3', '96', '96', '--markdown']) == 0
    assert capsys.readouterr().out.startswith('|  | condensed |')


@pytest.mark.parametrize('out', ['x.pth', 'x.safetensors'])
def test_deploy_writes_a_condensed_checkpoint_that_loads_strictly(trained, tmp_path, capsys, out):
    path = tmp_path / out
    assert (
        main(['deploy', str(trained), '--arch', 'condensenetv2_a', '--out', str(path), '--input', '3', '64', '64']) == 0
    )
    printed = capsys.readouterr().out
    assert all(word in printed for word in ('parameters', 'multiply-adds', 'file size', 'max relative difference'))
    model = timm.create_model('condensenetv2_a', num_classes=10, deploy=True).eval()
    model.load_state_dict(find_state_dict(load_checkpoint(path)))
    original = timm.create_model('condensenetv2_a', num_classes=10).eval()
    original.load_state_dict(find_state_dict(load_checkpoint(trained)))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (model(x) - original(x)).abs().max() <= 1e-5 * original(x).abs().max()
    assert [p.name for p in tmp_path.iterdir()] == [out]


SMALL = ['--input', '3', '32', '32']
NAMED = ['condensenet_50_cifar', *SMALL]


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('command', ['deploy', 'export'])
def test_one_command_writes_several_kinds_of_files_of_one_model(command, tmp_path, monkeypatch, capsys):
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    outs = ['--out', 'x.pth', 'x.pt2', '--out', 'x.safetensors', '--onnx', 'x.onnx']
    assert main([command, *NAMED, *outs, '--json']) == 0
    tables = json.loads(capsys.readouterr().out)['tables']
    assert [row[0] for row in tables[-1]['rows']] == ['x.pth', 'x.pt2', 'x.safetensors', 'x.onnx']
    x = torch.randn(1, 3, 32, 32)
    found = [torch.export.load('x.pt2').module()(x)]
    found.append(torch.tensor(onnxruntime.InferenceSession('x.onnx').run(None, {'input': x.numpy()})[0]))
    for name in ('x.pth', 'x.safetensors'):
        model = timm.create_model('condensenet_50_cifar', deploy=True).eval()
        model.load_state_dict(find_state_dict(load_checkpoint(name)))
        found.append(model(x))
    assert all((logits - found[0]).abs().max() <= 1e-5 * found[0].abs().max() for logits in found)
    assert main([command, 'x.pth', *SMALL, '--out', 'again.pt2']) == 0


def test_deploy_takes_its_output_in_front(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ['--arch', 'condensenetv2_a', '--input', '3', '64', '64']
    assert main(['deploy', '--out', 'x.pth', str(trained), *more]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


@pytest.mark.needs('onnx', 'onnxruntime', 'openvino')
def test_deploy_writes_all_of_its_files_or_none(tmp_path, monkeypatch, capsys):
    from cnv2_plugin.deploy.runtimes import openvino

    def stop(*arguments, **options):
        raise ValueError('stopped here.')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openvino, 'write', stop)
    assert main(['deploy', *NAMED, '--out', 'x.pth', 'x.onnx', 'x.xml']) == 1
    assert 'stopped here' in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('outs', 'words'), [(['x.pth', 'x.pth'], ('x.pth', 'twice')), (['x.xml', 'x.param'], ('x.bin', 'twice'))]
)
def test_deploy_writes_no_file_twice(outs, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['deploy', *NAMED, '--out', *outs]) == 1
    error = capsys.readouterr().err
    assert all(word in error for word in words) and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_deploy_writes_onnx_too(trained, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    command = [sys.executable, str(ROOT / 'tools/deploy.py'), str(trained), '--arch', 'condensenetv2_a']
    command += ['--out', 'x.pth', '--onnx', 'x.onnx', '--batch', '1']
    subprocess.run(command, check=True, cwd=tmp_path)
    assert onnxruntime.InferenceSession(tmp_path / 'x.onnx').get_inputs()[0].shape == [1, 3, 224, 224]


def test_deploy_refuses_to_write_when_verification_fails(trained, tmp_path, capsys):
    arguments = ['deploy', str(trained), '--arch', 'condensenetv2_a', '--out', str(tmp_path / 'x.pth')]
    assert main([*arguments, '--tolerance', '0', '--input', '3', '64', '64']) == 1
    assert 'nothing was written' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_half_pruned_and_condensed_checkpoints_are_refused(tmp_path, capsys):
    model = timm.create_model('condensenetv2_a', num_classes=10)
    save_checkpoint(model.state_dict(), tmp_path / 'half.pth')
    save_checkpoint(finish_pruning(model).eval().state_dict(), tmp_path / 'done.pth')
    model.switch_to_deploy()
    save_checkpoint(model.state_dict(), tmp_path / 'condensed.pth')
    for name, message in (('half', 'Pruning is not finished'), ('condensed', 'condensed already')):
        out = tmp_path / 'out.pth'
        assert main(['deploy', str(tmp_path / f'{name}.pth'), '--arch', 'condensenetv2_a', '--out', str(out)]) == 1
        assert message in capsys.readouterr().err and not out.exists()


def test_the_table_of_commands_holds_all_of_them():
    files = {path.stem.replace('_', '-') for path in (ROOT / 'cnv2_plugin/commands').glob('[!_]*.py')}
    assert list(COMMANDS) == sorted(files)


def test_only_the_command_that_was_asked_for_is_imported():
    code = (
        'import sys\nfrom cnv2_plugin.cli import main\n'
        "try:\n    main(['cost', '--help'])\n"
        'finally:\n    loaded = {name for name in sys.modules if name.startswith("cnv2_plugin.commands.")}\n'
        '    print({name.rpartition(".")[2] for name in loaded if "._" not in name})'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert '--deploy' in result.stdout and result.stdout.endswith("{'cost'}\n")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--help'])
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and all(name in printed for name in COMMANDS)


@pytest.mark.parametrize('name', ['train', 'test', 'deploy', 'import-official'])
def test_tools_are_the_commands_that_openmmlab_users_look_for(name, monkeypatch, capsys):
    def usage(run):
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 0
        return capsys.readouterr().out

    tool = ROOT / 'tools' / f'{name.replace("-", "_")}.py'
    monkeypatch.setattr('sys.argv', [str(tool), '--help'])
    printed = usage(lambda: runpy.run_path(str(tool), run_name='__main__'))
    assert printed == usage(lambda: main([name, '--help'])) and f'cnv2 {name}' in printed


def test_the_table_of_the_readme_names_every_command():
    rows = re.findall(r'^\| (`cnv2 .*?) \|', (ROOT / 'README.md').read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall('`cnv2 (.+?)`', row)]
    assert sorted(named) == list(COMMANDS)


def test_tools_run_outside_the_checkout(tmp_path):
    command = [sys.executable, str(ROOT / 'tools/deploy.py'), '--help']
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert '--classifier-keep' in result.stdout

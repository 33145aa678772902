"""Manners of ``cnv2``: JSON, completion, quiet pipes, near names, damaged weights and small images told as such."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint, save_checkpoint
from cnv2_plugin.cli import main
from tests.helpers import finish_pruning, installed, randomize_norms

SMALL = ['--input', '3', '32', '32']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('finished') / 'cifar.pth'
    model = finish_pruning(randomize_norms(timm.create_model('condensenet_50_cifar')))
    save_checkpoint(model.state_dict(), path)
    return path


def tables(capsys):
    printed = json.loads(capsys.readouterr().out)
    for table in printed['tables']:
        assert table['title'] and table['rows'] and all(len(row) == len(table['columns']) for row in table['rows'])
    return printed


def test_cost_as_json(capsys):
    assert main(['cost', 'condensenetv2_a', '--json']) == 0
    printed = tables(capsys)
    assert printed['command'] == 'cost'
    cells = [cell for row in printed['tables'][0]['rows'] for cell in row]
    assert 3350244 in cells and 45.87 in cells


@pytest.mark.parametrize(
    'arguments',
    [
        ['deploy', '{}', '--arch', 'condensenet_50_cifar', '--out', 'x.pth', *SMALL],
        pytest.param(
            ['export', '{}', '--arch', 'condensenet_50_cifar', '--out', 'x.onnx', '--forms', *SMALL],
            marks=[pytest.mark.slow, pytest.mark.needs('onnx', 'onnxruntime')],
        ),
        ['sparsity', '{}', '--arch', 'condensenet_50_cifar'],
    ],
    ids=lambda arguments: arguments[0],
)
def test_tables_as_json(arguments, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace('{}', str(finished)) for argument in arguments] + ['--json']) == 0
    assert tables(capsys)['command'] == arguments[0]


def test_a_failure_prints_no_json(capsys):
    assert main(['cost', 'condensenetv2_z', '--json']) == 1
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('rank', [0, 1])
def test_the_first_process_prints_the_json(rank, monkeypatch, capsys):
    monkeypatch.setenv('RANK', str(rank))
    assert main(['cost', 'condensenetv2_a', '--json']) == 0
    assert bool(capsys.readouterr().out) == (rank == 0)


@pytest.mark.parametrize('to', ['-', 'x.json'])
def test_benchmark_as_json(to, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ['benchmark', 'condensenet_50_cifar', '--rounds', '1', '--warmup', '0', '--forms', 'condensed']
    arguments += ['--runtimes', 'eager', '--input-size', '3', '32', '32']
    assert main([*arguments, '--json', *(() if to == '-' else (to,))]) == 0
    printed = capsys.readouterr().out
    content = json.loads(printed if to == '-' else (tmp_path / to).read_text())
    assert content['machine'] and len(content['measurements']) == 1


@pytest.mark.slow
def test_a_pipe_gets_no_progress(tmp_path):
    command = [sys.executable, '-m', 'cnv2_plugin.cli', 'benchmark', 'condensenet_50_cifar', '--rounds', '1']
    command += ['--warmup', '0', '--forms', 'condensed', '--runtimes', 'eager', '--input-size', '3', '32', '32']
    old = installed('onnxscript<=0.1.0')  # warns of itself
    quiet = dict(os.environ, PYTHONWARNINGS='ignore::FutureWarning') if old else None
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=quiet)
    assert 'condensenet_50_cifar' in result.stdout and result.stderr == ''


def test_an_unknown_name_gets_the_nearest_few(capsys):
    for name in ('nope', 'condensenetv2_z'):
        assert main(['cost', name]) == 1
        error = capsys.readouterr().err
        assert 'did you mean' in error and error.count('condensenet') + error.count('shufflenet') <= 5
        assert len(error) < 300


def test_broken_weights_are_named_before_anything_is_converted(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = find_state_dict(load_checkpoint(finished))
    name = next(name for name in weights if name.endswith('running_var'))
    weights[name][0] = float('nan')
    save_checkpoint(weights, 'nan.pth')
    for command in (['deploy', 'nan.pth', '--out', 'x.pth'], ['export', 'nan.pth', '--out', 'x.onnx']):
        assert main([*command, '--arch', 'condensenet_50_cifar', *SMALL]) == 1
        error = capsys.readouterr().err
        assert name in error and 'NaN' in error and 'differ' not in error
    assert os.listdir() == ['nan.pth']


@pytest.mark.parametrize(
    'arguments',
    [
        ['cost', 'condensenet_50_cifar', '--input'],
        ['report', '{}', '--rounds', '0', '--input'],
        ['deploy', '{}', '--out', 'x.pth', '--arch', 'condensenet_50_cifar', '--input'],
        pytest.param(['export', '{}', '--out', 'x.onnx', '--input'], marks=pytest.mark.needs('onnx', 'onnxruntime')),
        ['export', '{}', '--out', 'x.pt2', '--input'],
        ['benchmark', 'condensenet_50_cifar', '--rounds', '1', '--runtimes', 'eager', '--quiet', '--input-size'],
    ],
    ids=lambda arguments: ' '.join(a for a in arguments[:4] if a[:2] not in ('--', '{}')),
)
def test_commands_tell_the_smallest_size(arguments, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*(argument.replace('{}', str(finished)) for argument in arguments), '3', '2', '2']) == 1
    assert '2 x 2 pixels; the smallest that this network takes is 4 x 4' in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenet_50_cifar', 'condensenet_74_g4'])
def test_images_below_the_smallest_size_are_told_it(name):
    model = timm.create_model(name, num_classes=3).eval()
    smallest = model.smallest_input
    assert model(torch.randn(1, 3, smallest, smallest)).shape == (1, 3)
    with pytest.raises(ValueError, match=f'{smallest - 1} x 40 pixels; the smallest .* is {smallest} x {smallest}'):
        model(torch.randn(1, 3, smallest - 1, 40))


@pytest.mark.parametrize('path', ['forward_features', 'forward_intermediates', 'features_only', 'getter'])
def test_every_way_to_features_tells_the_smallest_size(path):
    if path in ('features_only', 'getter'):
        ways = dict(feature_cls='getter') if path == 'getter' else {}
        run = timm.create_model('condensenetv2_a', features_only=True, **ways).eval()
    else:
        run = getattr(timm.create_model('condensenetv2_a').eval(), path)
    with pytest.raises(ValueError, match='[18] x [18] pixels; the smallest .* is 31 x 31, so resize'):
        run(torch.randn(1, 3, 8, 8))
    run(torch.randn(1, 3, 31, 31))


def test_small_images_are_fine_for_the_first_stages():
    model = timm.create_model('condensenetv2_a', features_only=True, out_indices=(0, 1)).eval()
    assert [tuple(features.shape[2:]) for features in model(torch.randn(1, 3, 8, 8))] == [(4, 4), (2, 2)]
    with pytest.raises(RuntimeError, match='channels'):
        model(torch.randn(1, 4, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize('features_only', [False, True])
def test_the_check_of_the_size_is_in_no_graph(features_only):
    model = timm.create_model('condensenetv2_a', features_only=features_only).eval()
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    forms = [torch.jit.script(model), compiled, torch.export.export(model, (x,)).module()]
    with torch.no_grad():
        for form in forms:
            for actual, expected in zip(form(x), model(x)):
                assert torch.allclose(actual, expected, atol=1e-5)


def test_the_shell_completes_commands(tmp_path):
    pytest.importorskip('argcomplete')
    environment = dict(
        os.environ, _ARGCOMPLETE='1', COMP_LINE='cnv2 conv', COMP_POINT='9', _ARGCOMPLETE_IFS=' ',
        _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / 'words'),
    )  # fmt: skip
    subprocess.run([sys.executable, '-m', 'cnv2_plugin.cli'], env=environment, capture_output=True, timeout=60)
    assert (tmp_path / 'words').read_text().split() == ['convert-keys']


def test_version(capsys):
    from cnv2_plugin import __version__

    with pytest.raises(SystemExit) as caught:
        main(['--version'])
    assert caught.value.code == 0 and capsys.readouterr().out == f'cnv2_plugin {__version__}\n'

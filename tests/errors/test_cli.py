"""Wrong uses of the command line: exit code, one sentence on stderr, no traceback, no file left."""

import sys

import pytest
import torch

from cnv2_plugin.checkpoints.io import CheckpointError
from cnv2_plugin.cli import main
from tests.errors.cases import check_sentence
from tests.errors.conftest import ARCH, DAMAGED

DEPLOY = ['--arch', 'condensenetv2', '--out', 'x.pth']
A = ['--arch', 'condensenetv2_a', '--out', 'x.pth']
SMALL = ['--input', '3', '32', '32']

FAILURES = {
    'cost of an unknown variant': (['cost', 'resnet50'], ('variant', 'resnet50', 'condensenet_50_cifar')),
    'deploy under a name with a slip': (
        ['deploy', '{good}', '--arch', 'condensnetv2_a', '--out', 'x.pth'],
        ('variant', 'condensnetv2_a', 'condensenetv2_a'),
    ),
    'deploy of no file': (['deploy', 'none.pth', *A], ('file', 'none.pth')),
    'deploy of a folder': (['deploy', '.', *A], ('file', '.')),
    'deploy under no name': (
        ['deploy', '{good}', '--arch', 'condensenet_z', '--out', 'x.pth'],
        ('variant', 'condensenet_z', 'condensenetv2_a')),
    'deploy of another network': (['deploy', '{good}', *A], ('good.pth', 'condensenetv2_a', '--arch')),
    'deploy of another family': (['deploy', '{resnet}', *A], ('resnet.pth', 'condensenetv2_a', '--arch')),
    'deploy when half pruned': (
        ['deploy', '{half}', '--arch', 'condensenetv2', '--out', 'x.pth', '--model-kwargs', '{arch}'],
        ('stages.0.layers.0.conv_1', 'stage 0', 'prune_to')),
    'deploy twice': (['deploy', '{condensed}', *DEPLOY], ('checkpoint', 'condensed')),
    'deploy into no folder': (['deploy', '{good}', '--arch', 'x', '--out', 'no/x.pth'], ('folder', 'no')),
    'deploy with strange text': (
        ['deploy', '{good}', *DEPLOY, '--model-kwargs', 'depth=3'], ('depth', '', '--model-kwargs')),
    'deploy with tolerance 0': (
        ['deploy', '{good}', *DEPLOY, '--model-kwargs', '{arch}', '--tolerance', '-1', '--input', '3', '32', '32'],
        ('tolerance', '-1', 'nothing')),
    'convert an unknown layout': (
        ['convert-keys', '{resnet}', 'x.pth', '--to', 'timm'], ('keys', 'conv1.weight', 'cnv2 import-official')),
    'convert into no folder': (['convert-keys', '{good}', 'no/x.pth', '--to', 'timm'], ('folder', 'no')),
    'convert no file': (['convert-keys', 'none.pth', 'x.pth', '--to', 'timm'], ('file', 'none.pth')),
    'import our own file': (['import-official', '{good}', '--out', 'x.pth'], ('file', 'good.pth')),
    'import another network': (
        ['import-official', '{resnet}', '--out', 'x.pth'],
        ('file', 'resnet.pth', 'features.denseblock_1.denselayer_1')),
    'import half a file': (
        ['import-official', '{half_official}', '--out', 'x.pth'],
        ('file', 'half_official.pth', 'features.denseblock_1.denselayer_1')),
    'export of no file': (['export', 'none.pth', '--out', 'x.onnx'], ('file', 'none.pth')),
    'export of nobody': (['export', 'vgg16', '--out', 'x.onnx'], ('variant', 'vgg16', 'shufflenetv2_x1_0')),
    'export of what fits nothing': (['export', '{good}', '--out', 'x.pt2'], ('variants', 'good.pth', '--arch')),
    'export into no folder': (['export', '{named}', '--out', 'no/x.onnx'], ('folder', 'no')),
    'export when half pruned': (
        ['export', '{half_named}', '--out', 'x.onnx', *SMALL], ('stages.0.layers.0.conv_1', 'stage 0', 'prune_to')),
    'export for another runtime when half pruned': (
        ['export', '{half_named}', '--out', 'x.pt2', *SMALL], ('stages.0.layers.0.conv_1', 'stage 0', 'prune_to')),
    'export of NaN': (['export', '{nan}', '--out', 'x.onnx', *SMALL], ('stem.weight', 'NaN')),
    'export of other channels': (
        ['export', '{named}', '--out', 'x.pt2', '--input', '1', '32', '32'], ('--input', '(1, 32, 32)', '(3, H, W)')),
    'export of int8 without a folder': (
        ['export', '{named}', '--out', 'x.onnx', '--int8', 'none', *SMALL], ('folder', 'none')),
    'export of int8 without images': (
        ['export', '{named}', '--out', 'x.onnx', '--int8', '{no_images}', *SMALL],
        ('folder', 'no_images', '.png')),
    'export of int8 with broken images': (
        ['export', '{named}', '--out', 'x.onnx', '--int8', '{bad_images}', *SMALL], ('image', 'a.png')),
    'export of int8 with too few images': (
        ['export', '{named}', '--out', 'x.onnx', '--int8', '{one_image}', '--batch', '4', *SMALL],
        ('images', '1', '4')),
    'heatmap of nobody': (['heatmap', 'vgg16'], ('variant', 'vgg16', 'shufflenetv2_x1_0')),
    'heatmap of a plain shufflenet': (
        ['heatmap', 'shufflenetv2_x0_5'], ('shufflenetv2_x0_5', '', 'learned group convolution')),
    'heatmap of what fits nothing': (['heatmap', '{good}'], ('variants', 'good.pth', '--arch')),
    'heatmap of another name': (
        ['heatmap', '{named}', '--arch', 'condensenetv2_b'], ('named.pth', 'condensenetv2_b', '--arch')),
    'heatmap of a giant': (['heatmap', '{giant}'], ('giant.pth', '[1000000000000, 1]', 'layers')),
    'heatmap of a wide one': (['heatmap', '{wide}'], ('wide.pth', '[1000000000000, 8]', 'growth')),
    'sparsity of nothing sparse': (['sparsity', 'shufflenetv2_x0_5'], ('ShuffleNet', 'group-sparse', 'no')),
    'sparsity into no folder': (['sparsity', '{named}', '--csv', 'no/x.csv'], ('folder', 'no')),
    'report of no log': (['report', '{named}', '--log', 'none.csv', '--rounds', '0'], ('file', 'none.csv')),
    'report of a strange log': (
        ['report', '{named}', '--log', '{text_csv}', '--rounds', '0', '--input', '3', '32', '32'],
        ('curve', 'text.csv', 'summary.csv', 'scalars.json')),
    'report of NaN': (['report', '{nan}', '--rounds', '0', *SMALL], ('stem.weight', 'NaN')),
    'train no file': (['train', 'none.py'], ('file', 'none.py')),
    'train a broken config': (['train', '{broken_py}'], ('broken.py', 'line 1')),
    'train a config without a model': (['train', '{no_model_py}'], ('model', 'no_model.py')),
    'test no checkpoint': (['test', '{no_model_py}', 'none.pth'], ('file', 'none.pth')),
}  # fmt: skip

WRONG_USES = {
    'cost of nothing': (['cost'], ('variant', '', 'condensenetv2_a', '--all')),
    'cost of no pixels': (['cost', 'condensenetv2_a', '--input', '3', '0', '5'], ('input', '(3, 0, 5)', '(C, H, W)')),
    'deploy to another format': (
        ['deploy', '{good}', '--arch', 'x', '--out', 'x.bin'], ('--out', 'x.bin', '.onnx', '.pth', '.safetensors')),
    'deploy to strange ONNX': (['deploy', '{good}', *DEPLOY, '--onnx', 'x.pb'], ('x.pb', '.pb', '.onnx')),
    'deploy of no pixels': (
        ['deploy', '{good}', *DEPLOY, '--model-kwargs', '{arch}', '--input', '3', '0', '9'],
        ('input', '(3, 0, 9)', '(C, H, W)')),
    'import to another format': (['import-official', '{good}', '--out', 'x.txt'], ('x.txt', '.txt', '.pth')),
    'benchmark of an unknown form': (
        ['benchmark', 'condensenetv2_a', '--forms', 'fast'], ('--forms', 'fast', 'condensed', 'native')),
    'benchmark in no runtime': (
        ['benchmark', 'condensenetv2_a', '--runtimes', 'tpu'], ('--runtimes', 'tpu', 'onnxruntime', 'openvino')),
    'benchmark against an unknown family': (
        ['benchmark', 'condensenetv2_a', '--peers', 'nope'], ('--peers', 'nope', 'ShuffleNetV2')),
    'benchmark with no rounds': (
        ['benchmark', 'condensenet_50_cifar', '--rounds', '0', '--forms', 'condensed', '--runtimes', 'eager',
         '--input-size', '3', '32', '32'], ('rounds', '0', '1')),
    'export for no runtime': (['export', '{named}', '--out', 'x.pb'], ('--out', 'x.pb', '.onnx', '.pte')),
    'export of no pixels': (
        ['export', '{named}', '--out', 'x.onnx', '--input', '3', '0', '9'], ('input', '(3, 0, 9)', '(C, H, W)')),
    'export of int8 for OpenVINO': (
        ['export', '{named}', '--out', 'x.xml', '--int8', '{no_images}'], ('--int8', 'openvino', '.onnx')),
    'export of a free batch for ExecuTorch': (
        ['export', '{named}', '--out', 'x.pte', '--batch', 'dynamic'], ('--batch dynamic', 'executorch', '.onnx')),
    'heatmap with three titles': (['heatmap', 'condensenetv2_a', '--titles', 'a', 'b'], ('--titles', '2', '1')),
    'sparsity picture format': (['sparsity', 'condensenetv2_a', '--plot', 'x.gif'], ('x.gif', '.gif', '.png', '.pdf')),
    'report to a picture': (['report', '{named}', '--out', 'x.png'], ('x.png', '.png', '.html')),
    'report of no pixels': (['report', '{named}', '--input', '3', '0', '5'], ('input', '(3, 0, 5)', '(C, H, W)')),
    'report with negative rounds': (['report', '{named}', '--rounds', '-2'], ('--rounds', '-2', '0')),
    'train with an option without a value': (
        ['train', '{no_model_py}', '--cfg-options', 'bad'], ('--cfg-options', "'bad'", 'key=value')),
    'test with an option without a key': (
        ['test', '{no_model_py}', '{named}', '--cfg-options', '=3'], ('--cfg-options', "'=3'", 'key=value')),
    'train at a rate that nothing scales': (
        ['train', '{unscaled_py}', '--auto-scale-lr'], ('--auto-scale-lr', 'unscaled.py', 'base_batch_size')),
}  # fmt: skip

USAGE = [
    [], ['nothing'], ['deploy'], ['deploy', 'x.pth'], ['convert-keys', 'a'], ['convert-keys', 'a', 'b', '--to', 'k'],
    ['cost', 'a', '--input', '3', 'x', '2'], ['cost', '--sum'], ['heatmap'], ['heatmap', 'a', '--format', 'gif'],
    ['sparsity'], ['report'], ['report', 'a', '--rounds', 'many'], ['import-official', 'x'], ['train'], ['test'],
    ['import-official', 'x', '--out', 'y', '--arch', 'hswish'], ['benchmark', 'a', '--threads', 'one'],
    ['deploy', 'x', '--arch', 'a', '--out', 'y', '--model-kwargs', 'three'],
    ['deploy', 'x', '--arch', 'a', '--out', 'y', '--batch', 'many'], ['export', 'x'], ['export', '--out', 'x.onnx'],
    ['export', 'x', '--out', 'y.onnx', '--batch', '0'], ['export', 'x', '--out', 'y.onnx', '--batch', '-1'],
    ['export', 'x', '--out', 'y.onnx', '--batch', 'abc'], ['export', 'x', '--out', 'y.onnx', '--budget', '-5'],
    ['export', 'x', '--out', 'y.onnx', '--budget', 'nan'], ['export', 'x', '--out', 'y.onnx', '--threads', '0'],
    ['export', 'x', '--out', 'y.onnx', '--tolerance', 'nan'],
]  # fmt: skip


def fill(argument, files):
    names = {p.name.replace('.', '_'): str(p) for p in files.iterdir()}
    names.update({p.stem: str(p) for p in files.glob('*.pth')})
    return argument.format(arch=f'arch={ARCH}', **names) if argument.startswith('{') else argument


def run_failing(arguments, capsys):
    """Exit code and stderr without the progress bars of others."""
    code = main(arguments)
    error = capsys.readouterr().err
    return code, [line for line in error.splitlines() if line.startswith('cnv2 ') or 'Traceback' in line]


NEEDS = {'train': 'mmengine', 'test': 'mmengine', 'export when half pruned': 'onnx'}


def cases(of):
    for name, (arguments, _) in of.items():
        package = NEEDS.get(name) or NEEDS.get(arguments[0])
        yield pytest.param(name, marks=[pytest.mark.needs(package)] if package else [])


@pytest.mark.parametrize('name', cases(FAILURES))
def test_failures_exit_with_1_and_one_sentence(name, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, expected = FAILURES[name]
    code, lines = run_failing([fill(argument, files) for argument in arguments], capsys)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(f'cnv2 {arguments[0]}: ')
    check_sentence(lines[0], *expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', cases(WRONG_USES))
def test_wrong_uses_exit_with_2_and_one_sentence(name, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, expected = WRONG_USES[name]
    code, lines = run_failing([fill(argument, files) for argument in arguments], capsys)
    assert code == 2 and len(lines) == 1
    assert lines[0].startswith(f'cnv2 {arguments[0]}: ')
    check_sentence(lines[0], *expected)
    assert list(tmp_path.iterdir()) == []


READERS = {
    'deploy': ['deploy', '{}', '--arch', 'condensenetv2', '--out', 'x.pth', '--onnx', 'x.onnx'],
    'convert-keys': ['convert-keys', '{}', 'x.pth', '--to', 'mmpretrain'],
    'import-official': ['import-official', '{}', '--out', 'x.pth', '--deploy-out', 'y.pth'],
    'benchmark': ['benchmark', 'condensenetv2_a', '--checkpoint', '{}', '--rounds', '1'],
    'export': ['export', '{}', '--out', 'x.onnx'],
    'heatmap': ['heatmap', '{}', '--out', 'maps'],
    'sparsity': ['sparsity', '{}', '--csv', 'x.csv', '--plot', 'x.png'],
    'report': ['report', '{}', '--out', 'x.html'],
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_no_command_reads_a_damaged_or_hostile_file(damage, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for reader, arguments in READERS.items():
        code, lines = run_failing([a.replace('{}', str(files / damage)) for a in arguments], capsys)
        assert code == 1 and len(lines) == 1, reader
        assert lines[0].startswith(f'cnv2 {reader}: ')
        check_sentence(lines[0].replace(str(files), ''), *DAMAGED[damage])
        assert list(tmp_path.iterdir()) == [], reader
    assert not (files / 'executed').exists()


def test_a_payload_behind_trust_runs_only_then(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not (files / 'executed').exists()
    main(['sparsity', str(files / 'payload.pth'), '--trust'])
    assert (files / 'executed').exists()
    (files / 'executed').rmdir()


@pytest.mark.parametrize('arguments', USAGE, ids=' '.join)
def test_usage_errors_exit_with_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert 'usage: cnv2' in error and 'error: ' in error and 'Traceback' not in error
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(files):
    with pytest.raises(CheckpointError):
        main(['sparsity', str(files / 'empty.pth'), '--debug'])


def test_a_folder_that_cannot_be_written_is_told_before_the_work(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('os.access', lambda *args, **kwargs: False)
    for name in ('x.onnx', 'x.pt2'):
        code, lines = run_failing(['export', str(files / 'named.pth'), '--out', name], capsys)
        assert code == 1 and len(lines) == 1
        check_sentence(lines[0], 'folder', name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_with_what_installs_it(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    deploy = ['deploy', str(files / 'good.pth'), '--arch', 'condensenetv2', '--model-kwargs', f'arch={ARCH}']
    for arguments in (
        [*deploy, '--out', 'x.pth', '--onnx', 'x.onnx', *SMALL],
        ['export', str(files / 'named.pth'), '--out', 'x.onnx', *SMALL],
    ):
        code, lines = run_failing(arguments, capsys)
        assert code == 1 and len(lines) == 1
        check_sentence(lines[0], 'onnx', '', 'pip install -e ".[deploy]"')
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(files, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, 'save', full)
    code, lines = run_failing(['convert-keys', str(files / 'good.pth'), 'x.pth', '--to', 'mmpretrain'], capsys)
    assert code == 1 and 'No space left on device' in lines[0]
    assert list(tmp_path.iterdir()) == []

"""Files of other runtimes: run here, compared with PyTorch, and never left half-written."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.deploy import VerificationError, condense
from cnv2_plugin.deploy.runtimes import RUNTIMES, export_runtime
from tests.deploy.test_lowering import Foreign, hostile, small

SIZE = (3, 32, 32)
HERE = ['openvino', 'torch_export', 'executorch', 'ncnn']


def needs(runtime):
    for package in RUNTIMES[runtime].packages:
        pytest.importorskip(package)


@pytest.mark.parametrize('runtime', [pytest.param(r, marks=pytest.mark.slow) if r == 'executorch' else r for r in HERE])
def test_agrees_with_pytorch(runtime, tmp_path):
    needs(runtime)
    report = export_runtime(small(), runtime, tmp_path / f'x{RUNTIMES[runtime].suffixes[0]}', SIZE)
    assert report.verification.max_rel <= 1e-5 and report.forms
    assert sorted(tmp_path.iterdir()) == sorted(report.paths)
    assert report.size == sum(path.stat().st_size for path in report.paths)


@pytest.mark.parametrize('runtime', ['openvino', 'torch_export'])
def test_batches_and_foreign_models(runtime, tmp_path):
    needs(runtime)
    report = export_runtime(hostile(Foreign()), runtime, tmp_path / f'x{RUNTIMES[runtime].suffixes[0]}', SIZE, batch=2)
    assert report.verification.max_rel <= 1e-5


@pytest.mark.parametrize('runtime', ['openvino', 'ncnn'])
@pytest.mark.parametrize(
    ('name', 'arch'),
    [
        ('condensenet', dict(layers=(1, 2), growth=(8, 16))),
        ('sfr_shufflenetv2', dict(channels=(32, 56), repeats=(2, 3), final_width=40)),
        ('shufflenetv2', dict(channels=(32, 56), repeats=(2, 3), final_width=40)),
    ],
)
def test_families(runtime, name, arch, tmp_path, capfd):
    needs(runtime)
    model = hostile(timm.create_model(name, arch=arch, num_classes=5))
    report = export_runtime(model, runtime, tmp_path / f'x{RUNTIMES[runtime].suffixes[0]}', (3, 64, 64))
    assert report.verification.max_rel <= 1e-5
    if runtime == 'ncnn':
        assert capfd.readouterr() == ('', '')


def test_several_outputs(tmp_path):
    model = hostile(timm.create_model('condensenetv2', arch=dict(layers=(1, 1), growth=(8, 16)), features_only=True))
    report = export_runtime(condense(model), 'torch_export', tmp_path / 'x.pt2', SIZE)
    assert report.verification.max_rel <= 1e-5
    assert [tuple(y.shape) for y in torch.export.load(report.paths[0]).module()(torch.zeros(1, *SIZE))] == [
        (1, 24, 16, 16), (1, 40, 8, 8)
    ]  # fmt: skip


def test_coreml_converts(tmp_path):
    needs('coreml')
    report = export_runtime(small(), 'coreml', tmp_path / 'x.mlpackage', SIZE)
    assert report.verification is None and report.size > 10_000 and list(tmp_path.iterdir()) == [report.paths[0]]


def metadata_of_file(runtime, path):
    if runtime == 'openvino':
        import openvino

        model, keys = openvino.Core().read_model(path), ('classes', 'mean', 'std', 'size', 'version')
        return {key: model.get_rt_info(['cnv2_plugin', key]).value for key in keys}
    if runtime == 'coreml':
        import coremltools

        return dict(coremltools.models.MLModel(str(path), skip_model_load=True).user_defined_metadata)
    if runtime == 'onnxruntime':
        return {item.key: item.value for item in pytest.importorskip('onnx').load(path).metadata_props}
    extra = {'metadata.json': ''}
    torch.export.load(path, extra_files=extra)
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in json.loads(extra['metadata.json']).items()}


@pytest.mark.parametrize('runtime', ['openvino', 'torch_export', 'coreml', 'onnxruntime'])
def test_files_carry_what_serving_needs(runtime, tmp_path):
    needs(runtime)
    path = tmp_path / f'x{RUNTIMES[runtime].suffixes[0]}'
    export_runtime(small(), runtime, path, SIZE, metadata=dict(classes=['cat', 'dog'], mean=[0.5, 0.25, 0.125]))
    found = metadata_of_file(runtime, path)
    assert json.loads(found['classes']) == ['cat', 'dog'] and json.loads(found['mean']) == [0.5, 0.25, 0.125]
    assert json.loads(found['size']) == [3, 32, 32] and len(json.loads(found['std'])) == 3 and found['version']


def test_a_file_that_disagrees_is_not_written(tmp_path):
    (tmp_path / 'x.pt2').write_bytes(b'older')
    with pytest.raises(VerificationError, match='the torch_export file differs'):
        export_runtime(small(), 'torch_export', tmp_path / 'x.pt2', SIZE, tolerance=0.0)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [('x.pt2', b'older')]


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pnnx', None)
    monkeypatch.setattr('cnv2_plugin.deploy.runtimes.base.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='ncnn files take ncnn and pnnx; install with: pip install ncnn pnnx'):
        export_runtime(small(), 'ncnn', tmp_path / 'x.param', SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('runtime', 'name', 'options', 'message'),
    [
        ('abacus', 'x.bin', {}, "no runtime 'abacus'; choose from openvino"),
        ('openvino', 'x.onnx', {}, 'does not end in .xml'),
        ('torch_export', 'x.pt2', dict(batch=0), 'batch is 0'),
    ],
)
def test_bad_arguments_are_told(runtime, name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_runtime(small(), runtime, tmp_path / name, SIZE, **options)


@pytest.mark.parametrize('present', ['a.bin', 'a.param'])
def test_of_several_files_none_is_replaced(present, tmp_path):
    (tmp_path / present).write_text('older')
    with pytest.raises(
        FileExistsError, match=f'{present} exists, and ncnn writes more than one file.*remove it or give'
    ):
        export_runtime(torch.nn.Conv2d(3, 4, 1).eval(), 'ncnn', tmp_path / 'a.param', (3, 8, 8))
    assert [p.name for p in tmp_path.iterdir()] == [present] and (tmp_path / present).read_text() == 'older'


def test_of_a_folder_nothing_is_replaced(tmp_path):
    (tmp_path / 'a.mlpackage').mkdir()
    with pytest.raises(FileExistsError, match='a.mlpackage exists'):
        export_runtime(torch.nn.Conv2d(3, 4, 1).eval(), 'coreml', tmp_path / 'a.mlpackage', (3, 8, 8))


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from torch import nn
from cnv2_plugin.deploy.runtimes import base

model = torch.nn.Conv2d(3, 4, 1).eval()
base.import_module = lambda name: SimpleNamespace(
    write=lambda lowered, path, *_, **__: [path.with_suffix(s).write_text('new') for s in ('.xml', '.bin')],
    load=lambda path: lambda x: [model(x)],
)
base.find_spec = lambda package: True
rename, renames = Path.replace, iter(range(9))

def replace(source, target):
    if next(renames) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

Path.replace = replace
for count in range(3):
    child = os.fork()
    if not child:
        base.export_runtime(model, 'openvino', Path(sys.argv[1], str(count), 'a.xml'), (3, 8, 8))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')
def test_a_kill_between_two_files_leaves_no_mixed_pair(tmp_path):
    """The name that users give comes last, and stands for a whole pair."""
    expected = [set(), {'a.bin'}, {'a.bin', 'a.xml'}]
    for count in range(3):
        (tmp_path / str(count)).mkdir()
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', KILLED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ['-9', '-9', '0'], done.stderr[-800:]
    for count, left in enumerate(expected):
        assert {path.name for path in (tmp_path / str(count)).iterdir() if not path.name.startswith('.')} == left


SIGNALLED = """
import faulthandler, gc, os, signal, sys
from pathlib import Path
faulthandler.enable()
from cnv2_plugin.deploy.runtimes.openvino import load
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
for _ in range(3):
    first, second = load(Path(sys.argv[1])), load(Path(sys.argv[1]))
    del first
    gc.collect()
    del second
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
print('handled', len(handled))
"""


@pytest.mark.slow
@pytest.mark.needs('openvino', 'onnx')
def test_signals_are_handled_after_models_of_openvino_are_gone(tmp_path):
    """A plugin made and freed beside another leaves the process with a signal stack that is gone."""
    export_runtime(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), 'openvino', tmp_path / 'a.xml', (3, 8, 8))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SIGNALLED, str(tmp_path / 'a.xml')], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, ['handled', '3']), done.stderr[-800:]

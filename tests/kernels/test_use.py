"""The native form where users meet it: export, ONNX Runtime, commands, installations without it, other builds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import cnv2_plugin  # noqa: F401
from cnv2_plugin import kernels
from cnv2_plugin.benchmark import benchmark
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import export_onnx
from cnv2_plugin.lowering import lower, lowered_forms
from tests.helpers import relative_difference
from tests.kernels.cases import finished

pytestmark = pytest.mark.needs('kernels')
ROOT = Path(__file__).parents[2]
CSRC = ROOT / 'cnv2_plugin/kernels/csrc'
TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)


def tiny():
    return finished('condensenetv2', arch=TINY, num_classes=5)


def session(path: Path, threads: int = 1, native: bool = True):
    onnxruntime = pytest.importorskip('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if native:
        options.register_custom_ops_library(kernels.onnxruntime_library())
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('threads', [1, 2])
def test_onnx_runtime_runs_the_operator(tmp_path, threads):
    model, path = finished('condensenetv2_a'), tmp_path / 'native.onnx'
    report = export_onnx(model, path, (3, 64, 64), native=True)
    assert report.operators['NativeStages'] == 2
    assert report.forms == {'stages': 'native', 'global_pool.pool': 'native'}
    assert report.verification.max_rel < 1e-5
    opened = session(path, threads)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = model(x)
        actual = torch.from_numpy(opened.run(None, {'input': x.numpy()})[0])
        assert relative_difference(actual, expected) < 1e-5


@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_file_opened_without_the_library_names_the_operator(tmp_path):
    path = tmp_path / 'native.onnx'
    export_onnx(tiny(), path, (3, 32, 32), native=True)
    with pytest.raises(Exception, match='cnv2_plugin.*NativeStages|NativeStages'):
        session(path, native=False)


@pytest.mark.needs('onnx', 'onnxruntime')
def test_the_operator_refuses_what_does_not_fit(tmp_path):
    import onnx

    path = tmp_path / 'native.onnx'
    export_onnx(tiny(), path, (3, 32, 32), native=True)
    model = onnx.load(path)
    plan = next(item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT32)
    values = onnx.numpy_helper.to_array(plan).copy()
    values[0] = 7
    plan.CopyFrom(onnx.numpy_helper.from_array(values, plan.name))
    onnx.save(model, path)
    opened = session(path)
    with pytest.raises(Exception, match='NativeStages: this is no plan of these kernels'):
        opened.run(None, {'input': numpy.zeros((1, 3, 32, 32), numpy.float32)})


def test_a_saved_program_runs_again(tmp_path, capsys):
    path = tmp_path / 'native.pt2'
    assert main(['export', 'condensenetv2_a', '--input', '3', '64', '64', '--out', str(path), '--native']) == 0
    code = (
        'import sys, torch, cnv2_plugin.kernels.operator\n'
        'print(torch.export.load(sys.argv[1]).module()(torch.zeros(1, 3, 64, 64)).shape)'
    )
    done = subprocess.run([sys.executable, '-c', code, path], capture_output=True, text=True)
    assert 'torch.Size([1, 1000])' in done.stdout, done.stderr[-800:]


@pytest.mark.needs('onnx', 'onnxruntime')
def test_command_writes_native_onnx(tmp_path, capsys):
    path = tmp_path / 'native.onnx'
    arguments = ['export', 'sfr_shufflenetv2_x0_5', '--input', '3', '64', '64', '--out', str(path)]
    assert main([*arguments, '--native', '--json']) == 0
    assert 'NativeStages' in json.dumps(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize('extra', [['--tune', 'onnxruntime'], ['--no-optimize'], ['--int8', 'images']])
def test_command_tells_of_options_that_contradict(tmp_path, extra, capsys):
    assert main(['export', 'condensenetv2_a', '--out', str(tmp_path / 'a.onnx'), '--native', *extra]) == 2
    assert '--native leaves no forms to choose' in capsys.readouterr().err


def test_command_tells_of_runtimes_without_native_operators(tmp_path, capsys):
    assert main(['export', 'condensenetv2_a', '--out', str(tmp_path / 'a.xml'), '--native']) == 2
    assert '--native is for .onnx and .pt2 files' in capsys.readouterr().err


def test_lower_tells_of_what_it_cannot_do():
    with pytest.raises(ValueError, match='torch.float64 on cpu'):
        lower(tiny().double(), (3, 32, 32), 'native')
    with pytest.raises(ValueError, match='leave them out'):
        lower(tiny(), (3, 32, 32), 'native', {'stages.0': 'dense'})
    with pytest.raises(ValueError, match='compute no part'):
        lower(torch.nn.Conv2d(3, 4, 1).eval(), (3, 8, 8), 'native')


def test_lowering_leaves_the_model_alone():
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = lower(model, (3, 32, 32), 'native')
    assert lowered_forms(form) == {'stages': 'native'}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match='this model takes'):
        form(torch.zeros(1, 4, 32, 32))


@pytest.mark.needs('onnx', 'onnxruntime')
def test_benchmark_measures_the_native_form():
    runtimes = ['eager', 'onnxruntime']
    rows = benchmark({'tiny': tiny()}, ['condensed', 'native'], runtimes, (3, 32, 32), rounds=2, memory=True)
    assert {(row.form, row.runtime) for row in rows} == {
        (form, runtime) for form in ('condensed', 'native') for runtime in ('eager', 'onnxruntime')
    }
    assert len({row.mult_adds for row in rows}) == 1
    with pytest.raises(ValueError, match='the native form runs in'):
        benchmark({'tiny': tiny()}, ['native'], ['openvino'], (3, 32, 32), rounds=1)


def test_command_tells_what_is_there(capsys):
    assert main(['env', '--json']) == 0
    text = capsys.readouterr().out
    assert torch.__version__.split('+')[0] in text and kernels.instruction_set() in text


def run_tests(environment: dict[str, str], *options: str) -> None:
    """The kernel tests in another process, with other kernels."""
    tests = Path(__file__).with_name('test_kernels.py')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist', str(tests), *options],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['baseline', 'avx2'])
def test_every_instruction_set_computes_the_same(name):
    run_tests({'CNV2_KERNELS': name}, '-k', 'not published')
    code = 'from cnv2_plugin.kernels import instruction_set; print(instruction_set())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'CNV2_KERNELS': name})  # fmt: skip
    assert done.stdout.strip() == name or kernels.instruction_set() == 'baseline'


@pytest.mark.slow
@pytest.mark.needs('c++')
def test_sanitizers_find_nothing(tmp_path):
    x86 = os.uname().machine == 'x86_64'
    flags = ['-std=c++17', '-O1', '-g', '-fPIC', '-fno-omit-frame-pointer', '-fsanitize=address,undefined',
             '-fno-sanitize-recover=undefined', '-ffp-contract=fast', '-pthread']  # fmt: skip
    flags += ['-DCNV2_X86'] if x86 else []
    avx2 = ['-mavx2', '-mfma']
    avx512 = [*avx2, '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-w']
    extra = {'kernels_avx2': avx2, 'kernels_avx512': avx512}
    objects = []
    for source in sorted(CSRC.glob('*.cpp')):
        if source.stem in extra and not x86:
            continue
        objects.append(str(tmp_path / f'{source.stem}.o'))
        subprocess.run(['g++', *flags, *extra.get(source.stem, []), '-c', str(source), '-o', objects[-1]], check=True)
    built = tmp_path / 'sanitized.so'
    link = ['g++', '-shared', '-fsanitize=address,undefined', '-pthread']
    subprocess.run([*link, *objects, '-o', str(built)], check=True)
    runtime = [subprocess.run(['g++', f'-print-file-name=lib{name}.so'], capture_output=True, text=True).stdout.strip()
               for name in ('asan', 'ubsan')]  # fmt: skip
    run_tests({
        'CNV2_TEST_KERNELS': str(built), 'LD_PRELOAD': ' '.join(runtime), 'ASAN_OPTIONS': 'detect_leaks=0',
        'UBSAN_OPTIONS': 'print_stacktrace=1',
    }, '-k', 'not published and not compiles')  # fmt: skip


@pytest.mark.slow
@pytest.mark.needs('c++')
def test_wheels_with_and_without_kernels(tmp_path):
    """The platform wheel brings the kernels to a machine without a compiler; the pure one does without."""
    for folder, environment in (('platform', {}), ('pure', {'CNV2_NO_KERNELS': '1'})):
        subprocess.run(
            [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps', '-w',
             str(tmp_path / folder), str(ROOT)],
            check=True, env={**os.environ, **environment},
        )  # fmt: skip
    code = (
        'import cnv2_plugin.kernels as kernels, torch\n'
        'import cnv2_plugin; print(cnv2_plugin.__file__)\n'
        'import timm\n'
        'from cnv2_plugin.lowering import lower\n'
        'model = timm.create_model("condensenetv2_110_cifar")\n'
        '[layer.prune_to(layer.num_stages) for layer in model.sparse_layers()]\n'
        'print("kernels", kernels.available())\n'
        'runtime = "native" if kernels.available() else "onnxruntime"\n'
        'print(lower(model, (3, 32, 32), runtime)(torch.zeros(1, 3, 32, 32)).shape)'
    )
    for folder, tag in (('platform', f'py3-none-linux_{os.uname().machine}'), ('pure', 'py3-none-any')):
        (wheel,) = (tmp_path / folder).glob('*.whl')
        assert wheel.name.endswith(f'{tag}.whl')
        place = tmp_path / f'{folder}-installed'
        shutil.unpack_archive(wheel, place, 'zip')
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path,
            env={'PATH': '', 'PYTHONPATH': str(place), 'HOME': str(tmp_path)},
        )  # fmt: skip
        assert str(place) in done.stdout and f'kernels {folder == "platform"}' in done.stdout, done.stderr[-800:]
        assert 'torch.Size([1, ' in done.stdout

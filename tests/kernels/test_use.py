"""The native form where users meet it: export, ONNX Runtime, commands, installations without it, other builds."""

import ctypes
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
from cnv2_plugin.deploy import export_onnx, lower, lowered_forms
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


@pytest.mark.smoke
@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('threads', [1, 2])
def test_onnx_runtime_runs_the_operator(tmp_path, threads):
    model, path = finished('condensenetv2_a'), tmp_path / 'native.onnx'
    report = export_onnx(model, path, (3, 64, 64), native=True)
    assert report.operators['NativeStages'] == 1
    assert report.forms == {'stages': 'native', 'global_pool.pool': 'native'}
    assert report.verification.max_rel < 1e-5
    opened = session(path, threads)
    for count in (1, 2, 5, 0):
        x = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = model(x)
        actual = torch.from_numpy(opened.run(None, {'input': x.numpy()})[0])
        assert actual.shape == expected.shape
        assert not count or relative_difference(actual, expected) < 1e-5


@pytest.mark.smoke
def test_an_onnx_runtime_that_is_too_old_is_told():
    """Version 17 of its table of functions is missing; that of version 1 makes the message."""
    Get, Text = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32), ctypes.CFUNCTYPE(ctypes.c_void_p)
    version = ctypes.create_string_buffer(b'1.16.3')
    told = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: told.append(message.decode()) or 1
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p).value)
    get, text = (
        Get(lambda number: ctypes.addressof(table) if number == 1 else None),
        Text(lambda: ctypes.addressof(version)),
    )
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(part, ctypes.c_void_p).value for part in (get, text)))
    register = ctypes.CDLL(kernels.onnxruntime_library()).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert told == ['the native operators of cnv2_plugin need ONNX Runtime 1.17 or newer, but this is 1.16.3']


SHORT_OF_MEMORY = """
import resource, sys, numpy, onnx, onnxruntime, torch
from cnv2_plugin.kernels.library import register_operators
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program

runtime, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)


def maker(channels):
    plan = Program(1, 1)
    many, one = plan.add_map(channels, 0), plan.add_map(1, 1)
    plan.load(one)
    plan.zero(many)
    plan.store(one, [0])
    weights, words = plan.weights(), plan.words()
    if runtime == 'pytorch':
        return lambda images: native_stages(torch.from_numpy(images), weights, words, [1])
    node = onnx.helper.make_node('NativeStages', ['images', 'weights', 'plan'], ['out'], domain='cnv2_plugin')
    values = [onnx.helper.make_tensor_value_info(name, 1, [None] * 4) for name in ('images', 'out')]
    arrays = dict(weights=weights.numpy(), plan=words.numpy())
    given = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([node], 'plan', values[:1], values[1:], given)
    opsets = [onnx.helper.make_opsetid('', 17), onnx.helper.make_opsetid('cnv2_plugin', 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = register_operators(onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, dict(images=images))[0]


few, many = maker(2), maker(1 << 20)
images = numpy.ones((4, 1, 32, 32), numpy.float32)
few(images)
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1_000_000_000, -1))
for _ in range(2):
    try:
        many(images)
    except Exception as error:
        print('refused:', error)
    print('then', float(few(images).sum()))
"""


@pytest.mark.needs('onnx', 'onnxruntime')
@pytest.mark.parametrize('runtime', ['pytorch', 'onnxruntime'])
@pytest.mark.parametrize('threads', ['1', '2'])
def test_too_little_memory_is_one_sentence(runtime, threads):
    """Maps that do not fit are refused by whatever thread wants them; the process lives on."""
    done = subprocess.run(
        [sys.executable, '-c', SHORT_OF_MEMORY, runtime, threads], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.count('there is not enough memory for the maps') == 2, done.stdout
    assert done.stdout.count('then 4096.0') == 2, done.stdout


@pytest.mark.parametrize(
    ('place', 'told'), [(torch.float64, 'torch.float64 on cpu'), ('meta', 'torch.float32 on meta')]
)
def test_a_model_of_another_type_or_elsewhere_is_told(place, told):
    model = tiny().to(place)
    with pytest.raises(
        ValueError, match=rf'is {told}; the native kernels take float32 on the CPU, so .*\.float\(\)\.cpu\(\)'
    ):
        lower(model, (3, 32, 32), runtime='native')


@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_file_opened_without_the_library_names_the_operator(tmp_path):
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    path = tmp_path / 'native.onnx'
    export_onnx(tiny(), path, (3, 32, 32), native=True)
    with pytest.raises((errors.Fail, errors.InvalidGraph), match='NativeStages'):
        session(path, native=False)


@pytest.mark.needs('onnx', 'onnxruntime')
def test_the_operator_refuses_what_does_not_fit(tmp_path):
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    path = tmp_path / 'native.onnx'
    export_onnx(tiny(), path, (3, 32, 32), native=True)
    model = onnx.load(path)
    plan = next(item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT32)
    values = onnx.numpy_helper.to_array(plan).copy()
    values[0] = 7
    plan.CopyFrom(onnx.numpy_helper.from_array(values, plan.name))
    onnx.save(model, path)
    opened = session(path)
    with pytest.raises((errors.Fail, errors.InvalidArgument, errors.RuntimeException), match='NativeStages.*program'):
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


@pytest.mark.parametrize('extra', [['--no-optimize'], ['--int8', 'images']])
def test_command_tells_of_options_that_contradict(tmp_path, extra, capsys):
    assert main(['export', 'condensenetv2_a', '--out', str(tmp_path / 'a.onnx'), '--native', *extra]) == 2
    assert '--native rewrites the model' in capsys.readouterr().err


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


def runs_avx2() -> bool:
    """Whether this processor has AVX2."""
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    return ' avx2 ' in flags


def run_tests(environment: dict[str, str], *options: str) -> None:
    """The kernel tests in another process, with other kernels."""
    tests = Path(__file__).with_name('test_kernels.py')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist', str(tests), *options],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['baseline', *(['avx2'] if runs_avx2() else [])])
def test_every_instruction_set_computes_the_same(name):
    run_tests({'CNV2_KERNELS': name}, '-k', 'not published')
    code = 'from cnv2_plugin.kernels import instruction_set; print(instruction_set())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'CNV2_KERNELS': name})  # fmt: skip
    assert done.stdout.strip() == name


def test_an_instruction_set_that_is_not_there_is_refused():
    code = """
import torch
from cnv2_plugin.kernels import instruction_set
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program
plan = Program(1, 1)
plan.load(plan.add_map(1, 0))
plan.store(0, [0])
for call in (instruction_set, lambda: native_stages(torch.zeros(1, 1, 1, 1), plan.weights(), plan.words(), [1])):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        print(error)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'CNV2_KERNELS': 'avx1024'})  # fmt: skip
    assert done.stdout.count('CNV2_KERNELS is avx1024, which this processor does not run; take baseline') == 2, done


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
def test_threads_do_not_race(tmp_path):
    """Two callers with three threads each under the thread sanitizer."""
    model = finished('condensenetv2', arch=dict(TINY, growth=(16, 32), head_width=40), num_classes=5)
    form = lower(model, (3, 96, 96), 'native').fused
    images = torch.randn(4, 3, 96, 96)
    sizes = [form.plan.numel(), form.weights.numel(), *images.shape, *form(images).shape[1:]]
    (tmp_path / 'case').write_bytes(
        b''.join(part.numpy().tobytes() for part in (torch.tensor(sizes).int(), form.plan, form.weights, images))
    )
    sources = [str(p) for p in sorted(CSRC.glob('*.cpp')) if p.stem not in ('kernels_avx2', 'kernels_avx512')]
    program = tmp_path / 'run_program'
    flags = ['-std=c++17', '-O1', '-g', '-fsanitize=thread', '-ffp-contract=fast', '-pthread']
    subprocess.run(
        ['g++', *flags, str(Path(__file__).with_name('run_program.cpp')), *sources, '-o', str(program)], check=True
    )
    done = subprocess.run([str(program), str(tmp_path / 'case'), '3'], capture_output=True, text=True)
    assert done.returncode == 0 and 'WARNING' not in done.stderr, f'{done.stdout}\n{done.stderr[:3000]}'


@pytest.mark.slow
@pytest.mark.needs('c++')
def test_wheels_with_and_without_kernels(tmp_path):
    """The platform wheel brings the kernels to a machine without a compiler; the pure one does without, and is what a
    compiler that fails leaves.
    """
    for folder, environment in (('platform', {}), ('pure', {'CNV2_NO_KERNELS': '1'}), ('failing', {'CXX': 'false'})):
        subprocess.run(
            [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps', '-w',
             str(tmp_path / folder), str(ROOT)],
            check=True, env={**os.environ, **environment},
        )  # fmt: skip
    code = (
        'import cnv2_plugin.kernels as kernels, torch\n'
        'import cnv2_plugin; print(cnv2_plugin.__file__)\n'
        'import timm\n'
        'from cnv2_plugin.deploy import lower\n'
        'model = timm.create_model("condensenetv2_110_cifar")\n'
        '[layer.prune_to(layer.num_stages) for layer in model.sparse_layers()]\n'
        'print("kernels", kernels.available())\n'
        'runtime = "native" if kernels.available() else "onnxruntime"\n'
        'print(lower(model, (3, 32, 32), runtime)(torch.zeros(1, 3, 32, 32)).shape)'
    )
    tags = {'platform': f'py3-none-linux_{os.uname().machine}', 'pure': 'py3-none-any', 'failing': 'py3-none-any'}
    for folder, tag in tags.items():
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

"""The native form where users meet it: export, ONNX Runtime, commands, installations without it, other builds."""

import ctypes
import json
import os
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
from tests.kernels.cases import TINY, finished

pytestmark = pytest.mark.needs('kernels')
ROOT = Path(__file__).parents[2]


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


def maker(maps):
    plan = Program(1, 1)
    plan.load(plan.add_map(1, 0))
    for slot in range(1, maps):
        plan.zero(plan.add_map(1, slot))
    plan.store(0, [0])
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


few, many = maker(2), maker(60)
images = numpy.ones((4, 1, 2048, 2048), numpy.float32)
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


@pytest.mark.slow
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
    assert done.stdout.count('then 16777216.0') == 2, done.stdout


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.needs('onnx', 'onnxruntime')
def test_command_writes_native_int8(tmp_path, capsys):
    Image = pytest.importorskip('PIL.Image')
    (tmp_path / 'images').mkdir()
    for i in range(6):
        pixels = numpy.random.default_rng(i).integers(0, 40 + 40 * i, (40, 40, 3), numpy.uint8)
        Image.fromarray(pixels).save(tmp_path / f'images/{i}.png')
    path, small = tmp_path / 'native.onnx', tmp_path / 'native-int8.onnx'
    arguments = ['export', 'condensenetv2_a', '--input', '3', '64', '64', '--out', str(path), '--native']
    assert main([*arguments, '--int8', str(tmp_path / 'images'), '--json']) == 0
    told = json.dumps(json.loads(capsys.readouterr().out))
    assert 'same class as float32 on' in told and str(small) in told
    x = torch.randn(2, 3, 64, 64).numpy()
    one, other = (session(file).run(None, {'input': x})[0] for file in (path, small))
    assert small.stat().st_size < path.stat().st_size and 0 < abs(one - other).max() < 0.2 * abs(one).max()


def test_command_tells_of_options_that_contradict(tmp_path, capsys):
    assert main(['export', 'condensenetv2_a', '--out', str(tmp_path / 'a.onnx'), '--native', '--no-optimize']) == 2
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
    assert torch.__version__.split('+')[0] in text and kernels.instruction_set() in text and kernels.built_for() in text


@pytest.mark.slow
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


@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_profile_names_what_every_instruction_takes(tmp_path, capsys):
    path, standard, figures = tmp_path / 'native.onnx', tmp_path / 'standard.onnx', tmp_path / 'profile.json'
    export_onnx(tiny(), path, (3, 64, 64), native=True)
    export_onnx(tiny(), standard, (3, 64, 64))
    options = ['--rounds', '3', '--input-size', '3', '64', '64', '--quiet']
    assert main(['benchmark', '--profile', str(path), '--json', str(figures), *options]) == 0
    assert '3x3 convolution' in capsys.readouterr().out
    found = json.loads(figures.read_text())['instructions']
    counts = {each['kind']: each['count'] for each in found}
    assert counts['3x3 convolution'] >= 3 and counts['1x1 convolution'] >= 6  # three layers with reactivation
    assert all(each['milliseconds'] >= 0 and 0 <= each['share'] <= 1 for each in found)
    for wrong in (standard, figures):
        assert main(['benchmark', '--profile', str(wrong), *options]) == 1
        assert wrong.name in capsys.readouterr().err

"""The kernels in other builds: every instruction set, sanitizers, faults, forks, wheels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cnv2_plugin.deploy import lower
from cnv2_plugin.kernels import instruction_set
from cnv2_plugin.kernels.native_model import NativeStages
from cnv2_plugin.kernels.operator import native_stages
from tests.helpers import relative_difference
from tests.kernels.builds import HERE, ROOT, build, run_python, run_tests, sanitized
from tests.kernels.cases import TINY, finished
from tests.kernels.test_bytes import layers

pytestmark = [pytest.mark.slow, pytest.mark.needs('kernels')]
WIDER = dict(TINY, growth=(16, 32), head_width=40)
CHECKED = ('-O1', '-g', '-fno-omit-frame-pointer', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined')


def instruction_sets() -> list[str]:
    """What this processor runs of what kernels are compiled for."""
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    needs = dict(avx2=' avx2 ', avx512=' avx512bw ', avx512vnni=' avx512_vnni ')
    return ['baseline', *(name for name, flag in needs.items() if flag in flags)]


@pytest.mark.parametrize('name', instruction_sets())
def test_every_instruction_set_computes_the_same(name):
    """The one that is taken by itself is what the fast tests run."""
    if name != instruction_set():
        run_tests({'CNV2_KERNELS': name}, '-k', 'not published')
    code = 'from cnv2_plugin.kernels import instruction_set; print(instruction_set())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'CNV2_KERNELS': name})  # fmt: skip
    assert done.stdout.strip() == name


@pytest.fixture(scope='module')
def checked(tmp_path_factory) -> Path:
    """The kernels with sanitizers and faults."""
    return build(tmp_path_factory.mktemp('checked') / 'checked.so', *CHECKED, '-DCNV2_TESTING', extra=('faults.cpp',))


@pytest.mark.needs('c++')
def test_sanitizers_find_nothing(checked):
    """Workspaces hold NaN before they are written: nothing that a program did not write gets into a result."""
    left_out = 'not published and not compiles and not workspace and not forked and not bounded'
    run_tests(sanitized(checked, 'asan', 'ubsan'), '-k', left_out)


@pytest.mark.needs('c++', 'onnx', 'onnxruntime')
def test_whatever_fails_ends_the_call_with_its_reason(checked, tmp_path):
    """Every allocation and every instruction in turn, on one thread and several; the next call is right."""
    environment = {**sanitized(checked, 'asan', 'ubsan'), 'CNV2_KERNELS': 'baseline'}
    told = run_python(environment, '-m', 'tests.kernels.faults', str(tmp_path))
    assert len(told.splitlines()) == 18


def write_case(path: Path, form: NativeStages, images: Tensor) -> Tensor:
    """A part of a network with images, as the programs here read it (case.h); returns its result."""
    result = form(images)
    write_words(path, form.plan, form.weights, images, result)
    return result


def write_words(path: Path, words: Tensor, weights: Tensor, images: Tensor, result: Tensor) -> None:
    """The same from its parts."""
    sizes = [words.numel(), weights.numel(), *images.shape, *result.shape[1:]]
    parts = (torch.tensor(sizes).int(), words, weights, images)
    path.write_bytes(b''.join(part.contiguous().numpy().tobytes() for part in parts))


@pytest.fixture
def case(tmp_path, request) -> Path:
    """A classifier with four images, of 96 x 96 pixels or of the parameter's size."""
    model, size = finished('condensenetv2', arch=WIDER, num_classes=5), getattr(request, 'param', 96)
    write_case(tmp_path / 'case', lower(model, (3, size, size), 'native').fused, torch.randn(4, 3, size, size))
    return tmp_path / 'case'


@pytest.mark.needs('c++')
def test_threads_do_not_race(tmp_path, case):
    """Two callers with three threads each under the thread sanitizer."""
    flags = ('-O1', '-g', '-fsanitize=thread')
    program = build(tmp_path / 'run_program', *flags, extra=('run_program.cpp',), baseline=True)
    done = subprocess.run([program, case, '3'], capture_output=True, text=True)
    assert done.returncode == 0 and 'WARNING' not in done.stderr, f'{done.stdout}\n{done.stderr[:3000]}'


@pytest.mark.needs('c++')
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')
@pytest.mark.parametrize('case', [48], indirect=True)
def test_a_thousand_forks_under_load_all_answer(tmp_path, case):
    flags = ('-O2', '-g', '-fsanitize=undefined', '-fno-sanitize-recover=undefined')
    program = build(tmp_path / 'fork_program', *flags, extra=('fork_program.cpp',), baseline=True)
    done = subprocess.run([program, case, '1000'], capture_output=True, text=True, timeout=1200)
    assert done.stdout.strip() == '1000 of 1000 children answered', f'{done.stdout}\n{done.stderr[:3000]}'


@pytest.mark.needs('c++')
def test_wheels_with_and_without_kernels(platform_wheel, tmp_path):
    """The platform wheel brings the kernels to a machine without a compiler; the pure one does without, and is what a
    compiler that fails leaves.
    """
    for folder, environment in (('pure', {'CNV2_NO_KERNELS': '1'}), ('failing', {'CXX': 'false'})):
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
        'print("kernels", kernels.available(), "built for", kernels.built_for())\n'
        'runtime = "native" if kernels.available() else "onnxruntime"\n'
        'print(lower(model, (3, 32, 32), runtime)(torch.zeros(1, 3, 32, 32)).shape)'
    )
    tags = {'platform': f'py3-none-linux_{os.uname().machine}', 'pure': 'py3-none-any', 'failing': 'py3-none-any'}
    for folder, tag in tags.items():
        (wheel,) = (tmp_path / folder).glob('*.whl') if folder != 'platform' else [platform_wheel]
        assert wheel.name.endswith(f'{tag}.whl')
        place = tmp_path / f'{folder}-installed'
        shutil.unpack_archive(wheel, place, 'zip')
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path,
            env={'PATH': '', 'PYTHONPATH': str(place), 'HOME': str(tmp_path)},
        )  # fmt: skip
        assert str(place) in done.stdout and f'kernels {folder == "platform"}' in done.stdout, done.stderr[-800:]
        assert 'torch.Size([1, ' in done.stdout
        assert folder != 'platform' or f'built for linux_{os.uname().machine}' in done.stdout


SYSROOT = Path('/usr/aarch64-linux-gnu')  # of Debian's libc6-arm64-cross
PLATFORMS = 'manylinux2014_x86_64', 'manylinux2014_aarch64'


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> dict[str, list]:
    """By platform, answer.c and the library from its wheel, as the first words of a command; built by one command."""
    folder, made = tmp_path_factory.mktemp('wheels'), {}
    subprocess.run(['bash', 'tools/build_wheels.sh', '--out', str(folder), *PLATFORMS], cwd=ROOT, check=True)
    for platform in PLATFORMS:
        (wheel,) = folder.glob(f'*-py3-none-{platform}.whl')
        shutil.unpack_archive(wheel, folder / platform, 'zip')
        target = f'{platform.removeprefix("manylinux2014_")}-linux-gnu.2.17'
        compiler = [ROOT / 'build/wheel-tools/bin/python', '-m', 'ziglang', 'cc', '-target', target]
        program = folder / f'answer-{platform}'
        subprocess.run([*compiler, HERE / 'answer.c', '-ldl', '-o', program], check=True)
        made[platform] = [program, folder / platform / 'cnv2_plugin/kernels/_native.so']
    return made


def emulator(processor: str) -> list:
    """Words in front of a command that have qemu run it as a processor of ARM64 would."""
    return ['qemu-aarch64', '-cpu', processor, '-L', SYSROOT]


def has_emulator() -> bool:
    """Whether programs of ARM64 run here."""
    return bool(shutil.which('qemu-aarch64')) and SYSROOT.exists()


def test_wheels_for_other_machines(programs, tmp_path):
    """What is in them computes the same here and, under qemu, on ARM64."""
    models = {
        'dense': finished('condensenetv2', arch=WIDER, num_classes=5),
        'condensenetv2_a': finished('condensenetv2_a'),
        'shuffled': finished('sfr_shufflenetv2_x0_5'),
    }
    expected = {}
    for name, model in models.items():
        form, images = lower(model, (3, 96, 80), 'native'), torch.randn(2, 3, 96, 80)
        part = getattr(form, 'fused', None) or form.stages
        expected[name] = write_case(tmp_path / name, part, images)
    result = tmp_path / 'result'
    for platform in PLATFORMS if has_emulator() else PLATFORMS[:1]:
        command = [*(emulator('max') if 'aarch64' in platform else []), *programs[platform]]
        for name, wanted in expected.items():
            for threads in ('1', '2'):
                subprocess.run([*command, tmp_path / name, threads, result], check=True)
                given = torch.frombuffer(bytearray(result.read_bytes()), dtype=torch.float32).view_as(wanted)
                assert relative_difference(given, wanted) <= 5e-7, (platform, name)


@pytest.mark.skipif(not has_emulator(), reason='qemu-aarch64 or an ARM64 glibc is missing')
@pytest.mark.parametrize(('processor', 'names'), [('max', ('', 'dotprod', 'neon')), ('cortex-a53', ('', 'neon'))])
def test_arm64_gives_the_same_bits_with_and_without_the_dot_product(programs, tmp_path, processor, names):
    """Layers of bytes; a processor without the instructions takes NEON's kernels, and refuses the others by name."""
    command, result = [*emulator(processor), *programs[PLATFORMS[1]]], tmp_path / 'result'
    for program, images in layers():
        expected = native_stages(images, program.weights(), program.words(), program.shape)
        write_words(tmp_path / 'case', program.words(), program.weights(), images, expected)
        for name in names:
            environment = {**os.environ, 'CNV2_KERNELS': name}
            subprocess.run([*command, tmp_path / 'case', '1', result], check=True, env=environment)
            assert result.read_bytes() == expected.numpy().tobytes(), name
    for name in {'dotprod', 'neon', 'avx2'}.difference(names):
        environment = {**os.environ, 'CNV2_KERNELS': name}
        done = subprocess.run(
            [*command, tmp_path / 'case', '1', result], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 3 and f'CNV2_KERNELS is {name}' in done.stdout and 'neon' in done.stdout, done

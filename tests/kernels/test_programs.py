"""Programs by hand: what each instruction computes, and what the kernels refuse before anything runs."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program
from tests.kernels.cases import library

pytestmark = pytest.mark.needs('kernels')
ACTIVATIONS = dict(Identity=nn.Identity(), ReLU=nn.ReLU(), ReLU6=nn.ReLU6(), Hardswish=nn.Hardswish())


def run(program: Program, images: torch.Tensor, *changes: int) -> torch.Tensor:
    return native_stages(images, program.weights(), program.words(), [program.out_channels, *changes])


@pytest.mark.parametrize('act', sorted(ACTIVATIONS))
def test_activations_of_single_values(act):
    """Linear layers and what is stored are activated value by value, not by vectors."""
    torch.manual_seed(0)
    x = 8 * torch.randn(2, 3, 1, 1)
    weight, scale, shift = torch.randn(40, 3), torch.randn(40) * 3, torch.randn(40) * 3
    program = Program(3, 40)
    images, mean, rows = (program.add_map(width, slot) for slot, width in enumerate((3, 3, 40)))
    program.load(images)
    program.average(images, mean)
    program.linear(mean, rows, weight, act_out=act)
    program.store(rows, range(40), (scale, shift), act)
    hidden = ACTIVATIONS[act](x[..., 0, 0] @ weight.t())
    expected = ACTIVATIONS[act](hidden * scale + shift)
    assert torch.allclose(run(program, x, 2)[..., 0, 0], expected, atol=1e-5)
    assert hidden.max() >= 6 and expected.max() >= 6 and (x[..., 0, 0] @ weight.t()).min() < -6


def test_a_map_has_one_size():
    """The same slot is written by other maps in between."""
    program = Program(1, 1)
    a, b, c = program.add_map(1, 0), program.add_map(1, 1), program.add_map(1, 0)
    program.load(a)
    program.pool(a, b)
    program.pool(b, c)
    program.zero(a)
    program.store(a, [0])
    with pytest.raises(ValueError, match='write one map at two sizes'):
        run(program, torch.zeros(1, 1, 64, 64), 0, 0)


def test_a_map_is_not_pooled_into_itself():
    program = Program(1, 1)
    a = program.add_map(1, 0)
    program.load(a)
    program.pool(a, a)
    program.store(a, [0])
    with pytest.raises(ValueError, match='pooled into itself'):
        run(program, torch.zeros(1, 1, 8, 8), 0)


ONE, ALL = torch.zeros(1, 1, dtype=torch.int64), torch.arange(3)[None]


def stored(program: Program, a: int, b: int) -> None:
    pass


def chosen(program: Program, a: int, b: int) -> None:
    program.select(a, b, torch.ones(1, 3, 3), ALL, ALL)


def chosen_in_bytes(program: Program, a: int, b: int) -> None:
    program.select(a, b, torch.ones(1, 3, 3), ALL, ALL, limits=(0.0, 1.0))


def added_to_in_bytes(program: Program, a: int, b: int) -> None:
    program.select(a, b, torch.ones(1, 1, 1), ONE, ONE)
    program.select(a, b, torch.ones(1, 3, 1), ONE, ALL, accumulate=True, limits=(0.0, 1.0))


def added_to(program: Program, a: int, b: int) -> None:
    program.select(a, b, torch.ones(1, 1, 1), ONE, ONE)
    program.select(a, b, torch.ones(1, 3, 1), ONE, ALL, accumulate=True)


def convolved(program: Program, a: int, b: int) -> None:
    program.spatial(a, b, torch.ones(1, 3, 3, 3, 3), ALL, ALL)


def convolved_with_stride(program: Program, a: int, b: int) -> None:
    split = program.add_map(12, 2, padded=True)
    program.split(a, split)
    program.spatial(split, b, torch.ones(1, 3, 3, 3, 3), ALL, ALL, stride=2)


def largest(program: Program, a: int, b: int) -> None:
    split = program.add_map(12, 2, padded=True)
    program.split(a, split)
    program.maximum(split, b)


def pooled(program: Program, a: int, b: int) -> None:
    program.pool(a, b)


def averaged(program: Program, a: int, b: int) -> None:
    program.average(a, b)


def averaged_and_weighed(program: Program, a: int, b: int) -> None:
    mean = program.add_map(3, 2)
    program.average(a, mean)
    program.linear(mean, b, torch.ones(3, 3))


def excited(program: Program, a: int, b: int) -> None:
    program.excite(a, 0, torch.ones(2, 3), torch.ones(3, 2))


def normalised(program: Program, a: int, b: int) -> None:
    program.normalise(a, (torch.ones(3), torch.ones(3)))


def taken_by_another_map(program: Program, a: int, b: int) -> None:
    other = program.add_map(3, 0, padded=True)
    program.zero(other)
    program.load(a)


@pytest.mark.parametrize(
    'part',
    [stored, chosen, added_to, chosen_in_bytes, added_to_in_bytes, convolved, convolved_with_stride, largest,
     pooled, averaged, averaged_and_weighed, excited, normalised, taken_by_another_map],
)  # fmt: skip
def test_channels_that_were_not_written_are_not_read(part):
    """A program that loads one channel of three and gives all three would give what other calls left in memory."""
    program = Program(1, 3)
    a, b = program.add_map(3, 0, padded=True), program.add_map(3, 1, padded=True)
    program.load(a)
    part(program, a, b)
    last = program.instructions[-1]
    program.store(a if part in (stored, excited, normalised, taken_by_another_map) else last[3], range(3))
    with pytest.raises(ValueError, match='reads channels of a map that nothing was written to'):
        run(program, torch.ones(1, 1, 8, 8), *program.shape[1:])


def test_maps_that_are_written_are_read():
    """The counterpart: with the rest of the channels written, the same instructions run."""
    for part in (
        chosen,
        added_to,
        chosen_in_bytes,
        added_to_in_bytes,
        convolved,
        convolved_with_stride,
        largest,
        pooled,
        averaged,
        excited,
        normalised,
    ):
        program = Program(3, 3)
        a, b = program.add_map(3, 0, padded=True), program.add_map(3, 1, padded=True)
        program.load(a)
        program.zero(b)
        if part in (pooled, averaged, convolved_with_stride, largest):
            b = program.add_map(3, 1, padded=True)
        part(program, a, b)
        program.store(a if part in (excited, normalised) else b, range(3))
        assert not run(program, torch.ones(2, 3, 8, 8), *program.shape[1:]).isnan().any()


MANY = 1 << 20


def large_map(program: Program) -> None:
    program.zero(program.add_map(MANY, 1))


def large_split(program: Program) -> None:
    program.split(0, program.add_map(MANY, 1, padded=True))


def large_target(program: Program) -> None:
    program.select(0, program.add_map(MANY, 1), torch.ones(1, 1, 1), ONE, ONE)


def many_maps(program: Program) -> None:
    for _ in range(30000):
        program.zero(program.add_map(10000, 1))


def again_and_again(program: Program) -> None:
    large = program.add_map(30000, 1)
    for _ in range(60000):
        program.zero(large)
        program.normalise(large)


@pytest.mark.parametrize('part', [large_map, large_split, large_target, many_maps, again_and_again])
def test_what_a_program_costs_is_bounded_by_its_length(part):
    program = Program(1, 1)
    program.load(program.add_map(1, 0))
    part(program)
    program.store(0, [0])
    words, weights = program.words(), program.weights()
    begin = time.process_time()
    with pytest.raises(ValueError, match='more channels than'):
        native_stages(torch.zeros(1, 1, 32, 32), weights, words, [1])
    assert time.process_time() - begin < 1


COPY = """
import ctypes, os, signal, sys
run = ctypes.CDLL(sys.argv[1]).cnv2_run
size, words = ctypes.c_int64, [int(word) for word in sys.argv[2:]]
plan, weights, message = (ctypes.c_int32 * len(words))(*words), ctypes.c_float(), ctypes.create_string_buffer(512)
result, images = (ctypes.c_float * 16000000)(), (ctypes.c_float * 16000000)(*1000 * [1])


def call(side, threads):
    'The first of a copy of some images of one channel, or the reason why there is none.'
    failed = run(plan, size(len(words)), ctypes.byref(weights), size(1), images, *map(size, (1, 1, side, side)), result,
                 (size * 3)(1, side, side), size(threads), message, size(512))
    return message.value.decode() if failed else result[0]
"""


def run_copies(code: str, **environment: str) -> str:
    """What a process of its own prints, which has no more than the library and a program; fails where it never ends."""
    program = Program(1, 1)
    program.load(program.add_map(1, 0))
    program.zero(program.add_map(1, 1))
    program.store(0, [0])
    arguments = [library.onnxruntime_library(), *map(str, program.words().tolist())]
    done = subprocess.run([sys.executable, '-c', COPY + code, *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='memory is read from /proc')
def test_a_large_workspace_is_returned():
    code = """
memory = lambda: int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
call(4000, 1), call(64, 1)
for side in (2000, 4000):
    before = memory()
    call(side, 1)
    print(memory() - before)
"""
    small, large = map(float, run_copies(code).split())
    assert small > 20 > large


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork here')
def test_a_forked_process_has_threads_of_its_own():
    code = """
assert call(100, 2) == 1
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(7 if call(100, 2) == call(101, 3) == 1 else 1)
assert call(100, 2) == 1
print(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
"""
    assert run_copies(code).strip() == '7'


def test_kernels_that_are_not_there_are_refused_on_every_thread():
    code = """
for threads in (1, 2, 3):
    for side in 10 * [8, 300]:
        print(call(side, threads))
"""
    assert run_copies(code, CNV2_KERNELS='avx1024').count('CNV2_KERNELS is avx1024') == 60

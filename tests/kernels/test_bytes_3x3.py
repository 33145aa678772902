"""3x3 convolutions of bytes: the integers at every stride and shape, and what their reader refuses."""

import random

import pytest
import torch
from torch import Tensor, nn

from cnv2_plugin.kernels.integers import quantise_rows, step_and_zero
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program

pytestmark = pytest.mark.needs('kernels')
ACTIVATIONS = dict(Identity=nn.Identity(), ReLU=nn.ReLU(), ReLU6=nn.ReLU6(), Hardswish=nn.Hardswish())
LIMITS = (-0.375, 4.0), (-5.0, 5.0), (0.0, 3.0)
CASES = [(seed, act, 1 + seed % 2, seed % 5 == 0) for seed, act in enumerate(6 * list(ACTIVATIONS))]


def layer(seed: int, act: str, stride: int, limits: tuple[float, float], wide: bool = False):
    """A program of one layer of random shape, its images, and its constants; ``wide``: packed in several parts."""
    rng, given = random.Random(seed), torch.Generator().manual_seed(seed)
    groups, inputs, rows = rng.choice([1, 2, 3]), rng.choice([1, 3, 4, 9, 32, 70]), rng.choice([1, 2, 3, 4, 9])
    channels = groups * inputs
    draw = lambda *size: torch.randn(*size, generator=given)  # noqa: E731
    weight, bias = draw(groups, rows, inputs, 3, 3), draw(groups, rows) if rng.random() < 0.7 else None
    index = torch.randperm(channels, generator=given).view(groups, inputs)
    target = torch.randperm(groups * rows, generator=given).view(groups, rows)
    program = Program(channels, groups * rows)
    a = program.add_map(channels * stride**2, 0, padded=True)
    b = program.add_map(groups * rows, 1, padded=rng.random() < 0.5)
    program.load(a, 'Plain' if stride == 1 else 'Splitted')
    program.spatial(a, b, weight, index, target, bias, stride, act, limits)
    program.store(b, range(groups * rows))
    height, width = (150, rng.randint(100, 200)) if wide else (rng.randint(1, 19), rng.randint(1, 19))
    return program, 3 * draw(2, channels, height, width), (weight, bias, index, target)


def run(program: Program, images: Tensor) -> Tensor:
    return native_stages(images, program.weights(), program.words(), program.shape)


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize(('seed', 'act', 'stride', 'wide'), CASES)
def test_sums_are_those_of_whole_numbers(seed, act, stride, wide, threads):
    """Inputs rounded to bytes and weights to 7 bits, summed without rounding; ties aside, of which floats decide."""
    limits, before = LIMITS[seed % 3], torch.get_num_threads()
    program, images, (weight, bias, index, target) = layer(seed, act, stride, limits, wide)
    groups, rows, inputs = weight.shape[:3]
    step, zero = step_and_zero(limits)
    values, scale = quantise_rows(weight.flatten(2))
    steps = images.double()[:, index.flatten()] / step
    bytes_ = (steps.round() + zero).clamp(0, 255) - zero
    near_ties = ((steps - steps.floor() - 0.5).abs() < 1e-4).double()
    convolve = lambda x, w: nn.functional.conv2d(x, w, stride=stride, padding=1, groups=groups)  # noqa: E731
    sums = convolve(bytes_, values.view(groups * rows, inputs, 3, 3))
    touched = convolve(near_ties, torch.ones(groups * rows, inputs, 3, 3).double()) > 0
    expected = sums * (step * scale).view(-1, 1, 1)
    expected = ACTIVATIONS[act](expected if bias is None else expected + bias.double().view(-1, 1, 1))
    torch.set_num_threads(threads)
    try:
        actual = run(program, images)[:, target.flatten()].double()
    finally:
        torch.set_num_threads(before)
    off = (actual - expected).abs() / expected.abs().max().clamp(min=1)
    assert off.masked_fill(touched, 0).max() < 2e-6 and touched.double().mean() < 0.5
    assert off.max() < 1.01 * step * weight.abs().amax() * 8 / expected.abs().max().clamp(min=1) + 2e-6


def test_the_largest_weights_and_inputs_do_not_overflow():
    program = Program(256, 1)
    a, b = program.add_map(256, 0, padded=True), program.add_map(1, 1)
    program.load(a)
    weight = torch.full((1, 1, 256, 3, 3), -1.0)
    program.spatial(a, b, weight, torch.arange(256)[None], torch.zeros(1, 1, dtype=torch.int64), limits=(0.0, 1.0))
    program.store(b, [0])
    assert torch.allclose(run(program, torch.full((1, 256, 3, 3), 7.0))[0, 0, 1, 1], torch.tensor(-9.0 * 256))


def test_no_number_is_the_lowest_byte_and_what_is_infinite_the_highest():
    program = Program(1, 1)
    a, b = program.add_map(1, 0, padded=True), program.add_map(1, 1)
    program.load(a)
    one, weight = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, 3, 3)
    weight[..., 1, 1] = 1
    program.spatial(a, b, weight, one, one, limits=(-1.0, 4.0))
    program.store(b, [0])
    special = torch.tensor([float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 0.0, 3e9]).view(1, 1, 1, -1)
    low, high = -51 * 5 / 255, 204 * 5 / 255
    expected = torch.tensor([low, high, low, high, low, 0.0, high])
    assert torch.allclose(run(program, special).flatten(), expected, atol=1e-5)


def one_layer() -> tuple[Program, list[int]]:
    """A program of one layer, and the layer's words."""
    program = Program(4, 1)
    a, b = program.add_map(4, 0, padded=True), program.add_map(1, 1)
    program.load(a)
    weight, target = torch.ones(1, 1, 4, 3, 3), torch.zeros(1, 1, dtype=torch.int64)
    program.spatial(a, b, weight, torch.arange(4)[None], target, limits=(0, 1))
    program.store(b, [0])
    return program, program.instructions[-2]


AT = dict(inputs=5, rows=6, stride=7, flags=9, zero=-10, weights=-1)
"""Words of the instruction above, from its front or its end."""


@pytest.mark.parametrize(
    ('place', 'word', 'message'),
    [
        ('weights', 65, 'a byte beyond 64'),
        ('weights', 0xBF << 16, 'a byte beyond 64'),
        ('zero', 256, 'the byte of zero'),
        ('zero', -1, 'the byte of zero'),
        ('inputs', 257, 'inputs of a group'),
        ('inputs', 5, 'program|length of an instruction'),
        ('rows', 2, 'program|reach beyond|length of an instruction'),
        ('stride', 2, 'outside of the map'),
        ('flags', 0, 'reach beyond|length of an instruction'),
        ('flags', 16, 'flags'),
    ],
)
def test_words_that_do_not_fit_are_refused(place, word, message):
    program, words = one_layer()
    run(program, torch.ones(1, 4, 3, 3))
    words[AT[place]] = word
    with pytest.raises(ValueError, match=message):
        run(program, torch.ones(1, 4, 3, 3))


@pytest.mark.parametrize('change', ['shorter', 'longer', 'of no scales', 'ended'])
def test_programs_that_do_not_fit_are_refused(change):
    program, words = one_layer()
    weights, plan = program.weights(), program.words()
    if change in ('shorter', 'longer'):
        words[1] += -1 if change == 'shorter' else 1
        words[2:] = words[2:-1] if change == 'shorter' else [*words[2:], 0]
        plan = program.words()
    elif change == 'of no scales':
        weights = weights[:-1]
    else:
        plan = plan[: -len(program.instructions[-1]) - 1]
    with pytest.raises(ValueError, match='program|reach beyond|length of an instruction'):
        native_stages(torch.ones(1, 4, 3, 3), weights, plan, [1])

"""Layers of bytes: the integers, to the bit on every instruction set, and what their reader refuses."""

import random
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from cnv2_plugin.deploy import VerificationError, export_onnx, lower
from cnv2_plugin.deploy.calibration import calibrated, rounded
from cnv2_plugin.kernels.integers import quantise_rows, step_and_zero
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program
from tests.helpers import relative_difference
from tests.kernels import test_bytes_3x3 as of_3x3
from tests.kernels.builds import run_python
from tests.kernels.cases import finished, native

pytestmark = pytest.mark.needs('kernels')
ACTIVATIONS = dict(Identity=nn.Identity(), ReLU=nn.ReLU(), ReLU6=nn.ReLU6(), Hardswish=nn.Hardswish())


def layer(seed: int, act_in: str, act_out: str, limits: tuple[float, float], accumulate: bool = False):
    """A program of one layer of random shape, its images, and its constants."""
    rng, given = random.Random(seed), torch.Generator().manual_seed(seed)
    groups, inputs, rows = rng.choice([1, 2, 3]), rng.choice([1, 3, 4, 11, 32, 61, 700]), rng.choice([1, 2, 3, 4, 9])
    channels = groups * inputs
    draw = lambda *size: torch.randn(*size, generator=given)  # noqa: E731
    weight, bias = draw(groups, rows, inputs), draw(groups, rows)
    affine = (draw(groups, inputs), draw(groups, inputs)) if rng.random() < 0.7 else None
    index = torch.randperm(channels, generator=given).view(groups, inputs)
    target = torch.randperm(groups * rows, generator=given).view(groups, rows)
    program = Program(channels, groups * rows)
    a, b = program.add_map(channels, 0), program.add_map(groups * rows, 1, padded=rng.random() < 0.5)
    program.load(a)
    if accumulate:
        program.zero(b)
    program.select(a, b, weight, index, target, bias, affine, act_in, act_out, accumulate, limits)
    program.store(b, range(groups * rows))
    images = 3 * draw(2, channels, rng.randint(1, 19), rng.randint(1, 19))
    return program, images, (weight, bias, affine, index, target)


def run(program: Program, images: torch.Tensor) -> torch.Tensor:
    return native_stages(images, program.weights(), program.words(), program.shape)


CASES = [(seed, act_in, act_out, seed % 3 == 0) for seed, (act_in, act_out) in
         enumerate((a, b) for _ in range(4) for a in ACTIVATIONS for b in ACTIVATIONS)]  # fmt: skip


@pytest.mark.parametrize(('seed', 'act_in', 'act_out', 'accumulate'), CASES)
def test_sums_are_those_of_whole_numbers(seed, act_in, act_out, accumulate):
    """Inputs rounded to bytes and weights to 7 bits, summed without rounding; ties aside, of which floats decide."""
    limits = [(-0.375, 4.0), (-5.0, 5.0), (0.0, 3.0)][seed % 3]
    program, images, (weight, bias, affine, index, target) = layer(seed, act_in, act_out, limits, accumulate)
    step, zero = step_and_zero(limits)
    values, scale = quantise_rows(weight)
    x = images.double()[:, index.flatten()]
    if affine:
        x = x * affine[0].double().view(1, -1, 1, 1) + affine[1].double().view(1, -1, 1, 1)
    steps = ACTIVATIONS[act_in](x) / step
    bytes_ = (steps.round() + zero).clamp(0, 255) - zero
    near_ties = ((steps - steps.floor() - 0.5).abs() < 1e-3).unflatten(1, index.shape).any(2)
    bytes_ = bytes_.unflatten(1, index.shape)
    sums = torch.einsum('gri,ngihw->ngrhw', values, bytes_)
    expected = sums * (step * scale)[..., None, None] + bias.double()[..., None, None]
    expected = ACTIVATIONS[act_out](expected)
    actual = run(program, images)[:, target.flatten()].unflatten(1, target.shape).double()
    off = (actual - expected).abs() / expected.abs().max().clamp(min=1)
    assert off.masked_fill(near_ties[:, :, None], 0).max() < 2e-6
    assert off.max() < 1.01 * step * weight.abs().amax() * 8 / expected.abs().max().clamp(min=1) + 2e-6


@pytest.mark.parametrize('name', ['baseline'])
def test_every_instruction_set_gives_the_same_bits(name, tmp_path):
    run_python({'CNV2_KERNELS': name}, '-m', 'tests.kernels.test_bytes', str(tmp_path / 'results'))
    for given, expected in zip(torch.load(tmp_path / 'results'), results(), strict=True):
        assert torch.equal(given.view(torch.int32), expected.view(torch.int32))


def results() -> list[torch.Tensor]:
    """What some layers give, of infinite values and NaN too."""
    return [run(program, images) for program, images in layers()]


def layers() -> Iterator[tuple[Program, torch.Tensor]]:
    """Programs of one layer each, with images."""
    for seed, act_in, act_out, accumulate in CASES:
        program, images, _ = layer(seed, act_in, act_out, (-0.4, 3.0), accumulate)
        yield program, with_special_values(images)
    for seed, act, stride, wide in of_3x3.CASES:
        program, images, _ = of_3x3.layer(seed, act, stride, (-0.4, 3.0), wide)
        yield program, with_special_values(images)


def with_special_values(images: torch.Tensor) -> torch.Tensor:
    images[0, 0, 0, 0], images[1, -1, -1, -1] = float('nan'), float('inf')
    return images


def test_what_is_no_number_is_the_lowest_byte_and_what_is_infinite_the_highest():
    program = Program(1, 1)
    a, b = program.add_map(1, 0), program.add_map(1, 1)
    program.load(a)
    one = torch.zeros(1, 1, dtype=torch.int64)
    program.select(a, b, torch.ones(1, 1, 1), one, one, limits=(-1.0, 4.0))
    program.store(b, [0])
    special = torch.tensor([float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 0.0, 3e9]).view(1, 1, 1, -1)
    low, high = -51 * 5 / 255, 204 * 5 / 255
    expected = torch.tensor([low, high, low, high, low, 0.0, high])
    assert torch.allclose(run(program, special).flatten(), expected, atol=1e-5)


def test_rows_of_zeros_and_inputs_that_never_vary():
    program = Program(2, 1)
    a, b = program.add_map(2, 0), program.add_map(1, 1)
    program.load(a)
    program.select(a, b, torch.zeros(1, 1, 2), torch.arange(2)[None], torch.zeros(1, 1, dtype=torch.int64),
                   torch.ones(1, 1), limits=(0.0, 0.0))  # fmt: skip
    program.store(b, [0])
    assert torch.equal(run(program, torch.ones(1, 2, 2, 2)), torch.ones(1, 1, 2, 2))


def test_the_largest_weights_and_inputs_do_not_overflow():
    """Where products of pairs would not fit 16 bits any more, sums would be cut off."""
    count = 4096
    program = Program(count, 1)
    a, b = program.add_map(count, 0), program.add_map(1, 1)
    program.load(a)
    weight = torch.full((1, 1, count), -1.0)
    program.select(a, b, weight, torch.arange(count)[None], torch.zeros(1, 1, dtype=torch.int64), limits=(0.0, 1.0))
    program.store(b, [0])
    assert torch.allclose(run(program, torch.full((1, count, 3, 3), 7.0)), torch.tensor(-float(count)))


SHAPES = [(1, 1), (3, 5), (7, 3), (16, 40), (21, 9), (61, 8), (700, 33)]


@pytest.mark.parametrize('act', ACTIVATIONS)
@pytest.mark.parametrize(('inputs', 'rows'), SHAPES)
def test_linear_layers_have_weights_in_256_steps(inputs, rows, act):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(rows, inputs), torch.randn(rows), torch.randn(3, inputs, 1, 1)
    weight[0] *= rows > 1
    program = Program(inputs, rows)
    a, b = program.add_map(inputs, 0), program.add_map(rows, 1)
    program.load(a)
    program.linear(a, b, weight, bias if rows != 5 else None, act, in_bytes=True)
    program.store(b, range(rows))
    values, scale = quantise_rows(weight, 127)
    assert (values * scale[:, None] - weight).abs().max() <= 0.501 * weight.abs().max() / 127
    expected = x.double()[..., 0, 0] @ (values * scale[:, None]).t() + (bias.double() if rows != 5 else 0)
    assert torch.allclose(run(program, x)[..., 0, 0].double(), ACTIVATIONS[act](expected), atol=1e-5)


@pytest.mark.parametrize(('channels', 'hidden'), SHAPES)
def test_excitations_have_weights_in_256_steps(channels, hidden):
    torch.manual_seed(0)
    squeeze, excite, x = torch.randn(hidden, channels), torch.randn(channels, hidden), torch.randn(2, channels, 5, 3)
    program = Program(channels, channels)
    program.load(program.add_map(channels, 0))
    program.excite(0, 0, squeeze, excite, in_bytes=True)
    program.store(0, range(channels))
    whole = [values * scale[:, None] for values, scale in (quantise_rows(weight, 127) for weight in (squeeze, excite))]
    gate = torch.sigmoid((x.double().mean((2, 3)) @ whole[0].t()).relu() @ whole[1].t())
    assert relative_difference(run(program, x).double(), x.double() * gate[..., None, None]) < 5e-6


@pytest.mark.parametrize('kind', ['linear', 'excite'])
def test_weights_changed_where_they_lie_are_the_ones_that_count(kind):
    """They are none of the words that a program is known again by."""
    program = of_lone_bytes(kind)[0]
    plan, weights = program.words(), program.weights()
    before = native_stages(torch.ones(1, 4, 1, 1), weights, plan, [4])
    plan[plan.numel() - len(program.instructions[-1]) - 1] = -1
    assert not torch.equal(native_stages(torch.ones(1, 4, 1, 1), weights, plan, [4]), before)


AT = dict(inputs=5, zero=-2, weights=-1, flags=9)
"""Words of the layer below, of its instruction from its front or of the program from behind the weights."""


def one_layer() -> tuple[Program, int]:
    program = Program(4, 1)
    a, b = program.add_map(4, 0), program.add_map(1, 1)
    program.load(a)
    program.select(
        a, b, torch.ones(1, 1, 4), torch.arange(4)[None], torch.zeros(1, 1, dtype=torch.int64), limits=(0, 1)
    )
    layer = len(program.instructions) - 1
    program.store(b, [0])
    return program, layer


@pytest.mark.parametrize(
    ('place', 'word', 'message'),
    [
        ('weights', 65, 'a byte beyond 64'),
        ('weights', -128 << 24, 'a byte beyond 64'),
        ('weights', 0x80, 'a byte beyond 64'),
        ('weights', 0xBF << 16, 'a byte beyond 64'),
        ('zero', 256, 'the byte of zero'),
        ('zero', -1, 'the byte of zero'),
        ('inputs', 131073, 'too many inputs'),
        ('inputs', 2**20, 'too many inputs'),
        ('flags', 16, 'flags'),
    ],
)
def test_words_that_do_not_fit_are_refused(place, word, message):
    program, layer = one_layer()
    run(program, torch.ones(1, 4, 3, 3))
    program.instructions[layer][AT[place]] = word
    with pytest.raises(ValueError, match=message):
        run(program, torch.ones(1, 4, 3, 3))


def of_lone_bytes(kind: str) -> tuple[Program, int]:
    """A program of one linear layer or excitation of bytes of 4 inputs, and its place."""
    program = Program(4, 4)
    a, b = program.add_map(4, 0), program.add_map(4, 1)
    program.load(a)
    if kind == 'linear':
        program.linear(a, b, torch.eye(4), in_bytes=True)
    else:
        program.excite(a, 0, torch.ones(4, 4), torch.ones(4, 4), in_bytes=True)
    program.store(b if kind == 'linear' else a, range(4))
    return program, 1


LAYERS = dict(one=one_layer, linear=lambda: of_lone_bytes('linear'), excite=lambda: of_lone_bytes('excite'))


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('change', ['shorter', 'longer', 'of no scales', 'ended'])
def test_programs_that_do_not_fit_are_refused(change, layer):
    program, layer = LAYERS[layer]()
    words, weights = program.instructions[layer], program.weights()
    if change in ('shorter', 'longer'):
        words[1] += -1 if change == 'shorter' else 1
        words[2:] = words[2:-1] if change == 'shorter' else [*words[2:], 0]
    elif change == 'of no scales':
        weights = weights[:-1]
    plan = program.words() if change != 'ended' else program.words()[: -len(program.instructions[-1]) - 1]
    with pytest.raises(ValueError, match='program|reach beyond|length of an instruction'):
        native_stages(torch.ones(1, 4, 1, 1), weights, plan, [program.out_channels])


def test_other_instructions_have_no_bytes():
    program = Program(1, 1)
    a = program.add_map(1, 0)
    program.load(a)
    program.normalise(a)
    program.instructions[-1][4] |= 8
    program.store(a, [0])
    with pytest.raises(ValueError, match='for flags'):
        run(program, torch.ones(1, 1, 3, 3))


ARCH = dict(layers=(2, 2), growth=(16, 32), groups_1x1=2, groups_3x3=4, groups_sfr=2, condense_factor=2,
            sparse_factor=2, head_width=32, hswish_from=1)  # fmt: skip


def network(seed: int = 0) -> nn.Module:
    """A network whose layers are wide enough for bytes."""
    return finished('condensenetv2', seed, arch=ARCH, num_classes=5)


def images(count: int = 8) -> list[torch.Tensor]:
    """Images that differ in brightness, so that outputs vary."""
    torch.manual_seed(1)
    return [2 * torch.randn(1, 3, 1, 1) + torch.randn(1, 3, 32, 32) for _ in range(count)]


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('name', ['condensenetv2', 'sfr_shufflenetv2_x0_5'])
def test_a_network_computes_what_the_same_rounding_gives_in_pytorch(threads, name):
    model = network() if name == 'condensenetv2' else finished(name, num_classes=5)
    size = 32 if name == 'condensenetv2' else 64
    batches, before = [torch.randn(2, 3, size, size) for _ in range(3)], torch.get_num_threads()
    marked = calibrated(model, batches)
    form = lower(marked, (3, size, size), 'native', verify=False)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            expected, exact = rounded(marked, form)(batches[0]), model(batches[0])
            actual = form(batches[0])
    finally:
        torch.set_num_threads(before)
    assert relative_difference(actual, expected) < 1e-3 < 2 * relative_difference(actual, exact) < 0.4


def test_each_layer_loses_no_more_than_its_steps():
    """Against the same layer in float64: half a step of every input times its weight, half a weight's step likewise."""
    model = network()
    model.switch_to_deploy()
    checked = 0
    for layer_ in (m for m in model.modules() if type(m).__name__ == 'LearnedGroupConv'):
        x = torch.randn(2, layer_.in_channels, 9, 9)
        with torch.no_grad():
            read = layer_.act(layer_.norm(layer_.gather(x)))
            expected = layer_.double()(x.double())
            layer_.float()
            layer_.conv.input_limits = read.min().item(), read.max().item()
            actual = native(layer_, layer_.in_channels)(x).double()
        weight = layer_.conv.weight.double().flatten(1).abs()
        step = step_and_zero(layer_.conv.input_limits)[0]
        most = weight.sum(1) * step / 2 + weight.amax(1) / 128 * weight.size(1) * read.abs().max()
        most = layer_.scatter(most.view(1, -1, 1, 1)) if isinstance(layer_.scatter, nn.Module) else most
        assert ((actual - expected).abs() <= 1.01 * most.view(1, -1, 1, 1) + 1e-5).all()
        checked += 1
    assert checked == 4


@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_file_is_written_verified_and_smaller(tmp_path):
    from cnv2_plugin.deploy.quantize import compare_int8

    model, batches = network(), images()
    plain = export_onnx(model, tmp_path / 'a.onnx', (3, 32, 32), native=True)
    report = export_onnx(model, tmp_path / 'b.onnx', (3, 32, 32), native=True, int8=batches)
    assert report.verification.max_rel < 0.05 and report.size < 0.7 * plain.size
    same = compare_int8(tmp_path / 'a.onnx', tmp_path / 'b.onnx', [batch.numpy() for batch in batches], rounds=1)
    assert same.agreement > 0.8 and 1e-5 < same.max_rel < 0.2


def test_all_that_reads_one_pixel_is_in_bytes():
    model = network()
    form = lower(model, (3, 32, 32), 'native', int8=images())
    assert [name for name, _ in form.named_parameters()] == ['stem.weight'] and form.classifier.weights.numel() == 11
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = form.forward_head(form.forward_features(x), pre_logits=True)
        assert features.shape == (2, 32) and torch.allclose(form.classifier(features), form(x), atol=1e-4)
    model.classifier = nn.Sequential(model.classifier)  # not the layer that the model says
    form = lower(model, (3, 32, 32), 'native', int8=images())
    assert type(form.classifier[0]) is nn.Linear


def test_a_stem_stays_in_float32_however_many_channels_images_have():
    model = finished('condensenetv2', arch=ARCH, num_classes=5, in_chans=8)
    batches = [2 * torch.randn(1, 8, 1, 1) + torch.randn(1, 8, 32, 32) for _ in range(4)]
    marked = calibrated(model, batches)
    form = lower(marked, (8, 32, 32), 'native', verify=False)
    with torch.no_grad():
        assert relative_difference(form(batches[0]), rounded(marked, form)(batches[0])) < 1e-3


def test_layers_outside_of_the_kernels_stay_in_float32():
    model, batches = network(), images()
    for unit in model.stages[1].layers:
        unit.act_2 = nn.GELU()
    with pytest.raises(ValueError, match='take another runtime'):
        lower(model, (3, 32, 32), 'native', int8=batches)
    model = finished('condensenetv2', arch=ARCH, features_only=True)
    for unit in model.stages_1.layers:
        unit.act_2 = nn.GELU()
    marked = calibrated(model, batches)
    form = lower(marked, (3, 32, 32), 'native', verify=False)
    with torch.no_grad():
        found = zip(form(batches[0]), rounded(marked, form)(batches[0]), model(batches[0]), strict=True)
        for actual, expected, exact in found:
            assert relative_difference(actual, expected) < 1e-4 < relative_difference(actual, exact)


def test_what_int8_cannot_do_is_said():
    batches = images(2)
    with pytest.raises(ValueError, match='int8 holds no images'):
        lower(network(), (3, 32, 32), 'native', int8=[])
    with pytest.raises(ValueError, match='int8 is for the runtime native'):
        lower(network(), (3, 32, 32), int8=batches)
    with pytest.raises(ValueError, match='NaN or infinite'):
        lower(network(), (3, 32, 32), 'native', int8=[torch.full((1, 3, 32, 32), float('nan'))])
    narrow = dict(ARCH, growth=(4, 4), condense_factor=4, groups_1x1=4, bottleneck=2, groups_sfr=4)
    narrow = finished('condensenetv2', arch=narrow)
    with pytest.raises(ValueError, match='leave out int8'):
        lower(narrow, (3, 32, 32), 'native', int8=batches)
    with pytest.raises(VerificationError, match='int8 changes the outputs'):
        lower(network(), (3, 32, 32), 'native', int8=[batches[0] + 1e-4 * image for image in batches])  # all but alike


if __name__ == '__main__':
    torch.save(results(), sys.argv[1])

"""Verification notices what it must notice."""

import copy

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.deploy import VerificationError, condense, lower, verify
from cnv2_plugin.deploy.verify import relative_difference
from tests.helpers import finish_pruning, randomize_norms

TINY = dict(layers=[1, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=4, sparse_factor=4,
            hswish_from=2, se_from=2, head_width=24, stem_stride=1)  # fmt: skip
NETWORKS = {
    'condensenetv2': ('condensenetv2', dict(arch=TINY)),
    'condensenet': ('condensenet', dict(arch=dict(layers=[1, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4))),
    'shufflenet': (
        'sfr_shufflenetv2',
        dict(arch=dict(channels=[16, 32], repeats=[2, 1], stem_width=8, final_width=32)),
    ),
}
SIZE = (3, 32, 32)


def test_equal_forms():
    model = nn.Conv2d(3, 4, 1).train()
    report = verify(model, model, (3, 5, 5))
    assert (report.max_abs, report.max_rel, report.argmax_agreement, report.num_inputs) == (0, 0, 1, 4)
    assert model.training
    report.check(0)


def test_differences_are_measured_and_refused():
    model = nn.Conv2d(3, 4, 1, bias=False)
    report = verify(model, lambda x: model(x) * 1.5, (3, 5, 5))
    assert report.max_rel == pytest.approx(0.5, rel=0.3) and report.argmax_agreement == 1
    with pytest.raises(VerificationError, match='differs from the reference by 0.[45].*output 0'):
        report.check(1e-3)
    assert verify(model, lambda x: -model(x), (3, 5, 5)).argmax_agreement < 1


def test_nan_and_infinity_are_said_with_their_place():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with pytest.raises(VerificationError, match='candidate gives NaN'):
        verify(model, lambda x: model(x) * float('nan'), (3, 5, 5)).check(1e9)
    broken = copy.deepcopy(model)
    broken[1].running_var[2] = float('nan')
    with pytest.raises(VerificationError, match='candidate gives NaN.*first in 1'):
        verify(model, broken, (3, 5, 5)).check(1e9)
    with pytest.raises(VerificationError, match='reference gives NaN.*first in 1'):
        verify(broken, broken, (3, 5, 5)).check(1e9)


def test_shapes_and_number_of_outputs():
    with pytest.raises(VerificationError, match='1 outputs, the candidate 2'):
        verify(lambda x: x, lambda x: (x, x), (3, 5, 5))
    with pytest.raises(VerificationError, match=r'\(1, 3, 5, 5\)'):
        verify(lambda x: x, lambda x: x[..., 1:], (3, 5, 5))


def test_float64_and_several_outputs():
    report = verify(lambda x: (x, 2 * x), lambda x: [x, 2 * x], (1, 2, 2), dtype=torch.float64)
    assert report.max_abs == 0


def test_a_layer_by_itself():
    layer = next(finished('condensenetv2').sparse_layers()).eval()
    verify(layer, condense(layer), (layer.in_channels, 8, 8), exact=True).check(1e-5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_images_have_the_type_of_the_model(dtype):
    model = finished('condensenetv2').to(dtype)
    verify(model, condense(model), SIZE, exact=True).check(1e-5)


def finished(family, seed=0):
    torch.manual_seed(seed)
    name, options = NETWORKS[family]
    return finish_pruning(randomize_norms(timm.create_model(name, num_classes=7, **options))).eval()


def with_hostile_statistics(model):
    """Large biases in one class and one normalisation, tiny weights in others."""
    with torch.no_grad():
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        norms[len(norms) // 2].weight.fill_(1e-6)
        norms[len(norms) // 3].bias[1] = 1e6
        model.classifier.bias[3] = 1e6
    return model


def erase(p):
    p.zero_()


def permute(p):
    p.copy_(p.roll(1, 0))


def scale(p):
    p.mul_(1.01)


def changed(model):
    """Each model with one layer erased, permuted or scaled, and what was done."""
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and weight is not None:
            for change in (erase, permute, scale):
                kept = weight.detach().clone()
                with torch.no_grad():
                    change(weight)
                    if not torch.equal(kept, weight):
                        yield f'{change.__name__} {name}'
                    weight.copy_(kept)


def unnoticed(reference, candidate, mutated, exact):
    """Changes of either form that verification lets pass."""
    verify(reference, candidate, SIZE, exact=exact).check(1e-5)
    return [what for what in changed(mutated) if passes(verify(reference, candidate, SIZE, exact=exact))]


def passes(report):
    try:
        report.check(1e-5)
    except VerificationError:
        return False
    return True


FAST = (('condensenetv2', True, 'candidate'),)
CASES = [
    (family, hostile, side) for family in NETWORKS for hostile in (False, True) for side in ('reference', 'candidate')
]


@pytest.mark.parametrize(
    ('family', 'hostile', 'side'),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_every_change_of_a_layer_is_noticed(family, hostile, side):
    model = finished(family)
    if hostile:
        with_hostile_statistics(model)
    condensed = condense(model).eval()
    assert not unnoticed(model, condensed, model if side == 'reference' else condensed, True)


@pytest.mark.slow
@pytest.mark.parametrize('family', NETWORKS)
@pytest.mark.parametrize('runtime', ['onnxruntime', pytest.param('native', marks=pytest.mark.needs('kernels'))])
def test_every_change_is_noticed_after_lowering(family, runtime):
    model = finished(family)
    assert not unnoticed(model, lower(model, SIZE, runtime), model, False)


def test_one_large_class_hides_nothing():
    model = finished('condensenetv2')
    with torch.no_grad():
        model.classifier.bias[3] = 1e6
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.stages[0].layers[0].conv_2.weight.zero_()
    assert not passes(verify(lambda x: model(x), lambda x: other(x), SIZE))


@pytest.mark.parametrize('name', ['condensenetv2_a', 'sfr_shufflenetv2_x0_5'])
def test_activations_that_leave_little_of_a_channel_raise_no_alarm(name):
    """Of an untrained network, whose last activation cuts nearly all of some channels off."""
    torch.manual_seed(0)
    model = condense(finish_pruning(timm.create_model(name)).eval())
    verify(model, lower(model, (3, 64, 64)), (3, 64, 64)).check(1e-5)


def test_sizes_that_are_no_image_are_refused_and_all_images_are_run():
    for size in ((3, 5), (1, 3, 5, 5), (3, 0, 5)):
        with pytest.raises(ValueError, match='input_size'):
            verify(nn.Identity(), nn.Identity(), size)
    calls = []
    report = verify(lambda x: x, lambda x: calls.append(len(x)) or x, (3, 5, 5), num_inputs=3, batch_size=2)
    assert sum(calls) == report.num_inputs == 6


def test_outputs_without_elements_agree():
    assert verify(lambda x: (x, x[:0]), lambda x: (x, x[:0]), (3, 5, 5)).max_rel == 0


def test_a_channel_that_does_not_vary_is_compared_too():
    constant = torch.full((2, 3, 5, 5), 1000.0, dtype=torch.float64)
    assert relative_difference(constant, constant * 1.01, torch.float32) > 0.01
    assert relative_difference(constant, constant, torch.float32) == 0
    assert relative_difference(constant[:, :0], constant[:, :0], torch.float32) == 0

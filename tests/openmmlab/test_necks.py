"""Necks: pooling with squeeze-and-excitation, and the pyramid with reactivation."""

from copy import deepcopy

import pytest
import torch
from mmdet.models.necks import FPN

from cnv2_plugin.deploy import condense
from cnv2_plugin.models.multiply_adds import counted
from cnv2_plugin.toolkits.openmmlab import SEGlobalPooling, build_sfr_fpn
from tests.helpers import finish_pruning, randomize_norms, relative_difference

CHANNELS = [8, 12, 20]
SIZES = [(16, 20), (8, 10), (4, 5)]
LAYOUTS = [
    dict(num_outs=3),
    dict(num_outs=5),
    dict(num_outs=5, add_extra_convs='on_input'),
    dict(num_outs=5, add_extra_convs='on_lateral', relu_before_extra_convs=True),
    dict(num_outs=5, add_extra_convs='on_output', relu_before_extra_convs=True),
    dict(num_outs=4, start_level=1, add_extra_convs='on_input'),
    dict(num_outs=2, start_level=0, end_level=1),
    dict(num_outs=3, upsample_cfg=dict(scale_factor=2, mode='nearest')),
    dict(num_outs=3, norm_cfg=dict(type='BN'), no_norm_on_lateral=True, act_cfg=dict(type='ReLU')),
]


def features(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, c, h, w, generator=generator).to(dtype) for c, (h, w) in zip(CHANNELS, SIZES))


def pyramid(**options):
    return build_sfr_fpn(in_channels=CHANNELS, out_channels=16, groups=4, sparse_factor=3, **{'num_outs': 3, **options})


def mult_adds(neck, inputs):
    shadow, images = deepcopy(neck).to('meta').eval(), tuple(x.float().to('meta') for x in inputs)
    return counted(shadow.float(), lambda: shadow(images))[1]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_without_reactivation_it_is_the_fpn_of_mmdet(layout):
    torch.manual_seed(0)
    fpn = FPN(in_channels=CHANNELS, out_channels=16, **layout)
    fpn.init_weights()
    plain, sfr = pyramid(with_sfr=False, **layout), pyramid(**layout)
    assert plain.state_dict().keys() == fpn.state_dict().keys()
    added = sfr.state_dict().keys() - fpn.state_dict().keys()
    assert fpn.state_dict().keys() < sfr.state_dict().keys() and all(k.startswith('reactivations.') for k in added)
    plain.load_state_dict(fpn.state_dict())
    sfr.load_state_dict(fpn.state_dict(), strict=False)
    for layer in sfr.reactivations:
        torch.nn.init.zeros_(layer.conv.weight)
    for a, b, c in zip(fpn(features()), plain(features()), sfr(features())):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_coarser_level_reactivates_the_finer_one():
    neck = randomize_norms(pyramid()).double().eval()
    inputs = features(torch.float64)
    level = [conv(x) for conv, x in zip(neck.lateral_convs, inputs)]
    for i in (2, 1):
        up = torch.nn.functional.interpolate
        finer = level[i - 1] + up(level[i], size=level[i - 1].shape[2:])
        level[i - 1] = finer + neck.reactivations[i - 1](up(level[i], size=level[i - 1].shape[2:]))
    for conv, lateral, out in zip(neck.fpn_convs, level, neck(inputs)):
        assert relative_difference(out, conv(lateral)) < 1e-12


def test_condensed_pyramid_is_exact_and_counts_its_multiply_adds():
    neck = finish_pruning(randomize_norms(pyramid(num_outs=5))).double().eval()
    condensed = condense(neck)
    inputs = features(torch.float64)
    for a, b in zip(condensed(inputs), neck(inputs)):
        assert relative_difference(a, b) < 1e-12
    again = pyramid(num_outs=5, deploy=True).double().eval()
    again.load_state_dict(condensed.state_dict())
    assert torch.equal(again(inputs)[0], condensed(inputs)[0])
    weights = [layer.conv.weight.numel() for layer in condensed.reactivations]
    added = mult_adds(condensed, inputs) - mult_adds(pyramid(num_outs=5, with_sfr=False), inputs)
    assert added == len(inputs[0]) * sum(n * height * width for n, (height, width) in zip(weights, SIZES[1:]))
    neck.switch_to_deploy()
    assert neck.deploy


def test_the_multiply_adds_in_the_docstring_hold():
    sizes = [(100, 168), (50, 84), (25, 42)]
    inputs = tuple(torch.empty(1, 8, *size, device='meta') for size in sizes)
    options = dict(in_channels=[8, 8, 8], out_channels=256, num_outs=3)
    condensed, plain = build_sfr_fpn(**options, deploy=True), build_sfr_fpn(**options, with_sfr=False)
    added = mult_adds(condensed, inputs) - mult_adds(plain, inputs)
    assert added == 256 * 256 // 8 * (50 * 84 + 25 * 42)
    assert round(added / 1e6) == 43
    pixels = sum(h * w for h, w in sizes)
    assert round(9 * 256 * 256 * pixels / 1e9, 1) == 13.0


def test_pooling_accepts_tensors_and_tuples_and_refuses_the_rest():
    neck = SEGlobalPooling(32)
    x = torch.rand(2, 32, 5, 7)
    pooled = x.mean((2, 3))
    expected = pooled * torch.sigmoid(neck.se.fc2(torch.relu(neck.se.fc1(pooled))))
    assert torch.allclose(neck(x), expected, atol=1e-6)
    assert torch.equal(neck((torch.rand(2, 8, 9, 9), x))[0], neck(x))
    with pytest.raises(TypeError, match='tuple'):
        neck('features')
    with pytest.raises(ValueError, match='reduction'):
        SEGlobalPooling(8)


def test_wrong_number_of_levels_is_named():
    with pytest.raises(ValueError, match='2 feature maps'):
        pyramid()(features()[:2])

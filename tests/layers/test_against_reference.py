"""The fast layers against the slow restatement of the reference page, over random sizes, groups and masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation, kept_units
from tests.helpers import randomize_norms, relative_difference
from tests.reference import layers as slow
from tests.reference import schedule as slow_schedule

VIEWS = {'lgc': LearnedGroupConv, 'sfr': SparseFeatureReactivation}
ACTS = {'relu': (nn.ReLU, slow.relu), 'hswish': (nn.Hardswish, slow.hard_swish)}


@st.composite
def layer_cases(draw):
    kind = draw(st.sampled_from(sorted(VIEWS)))
    groups = draw(st.integers(1, 6))
    grouped = groups * draw(st.integers(1, 5))
    free = draw(st.integers(1, 17))
    channels = (free, grouped) if kind == 'lgc' else (grouped, free)
    factor = draw(st.integers(1, 8))
    return kind, channels, groups, factor, draw(st.sampled_from(sorted(ACTS))), draw(st.integers(0, 999))


def build(case, dtype=torch.float64):
    kind, channels, groups, factor, act, seed = case
    torch.manual_seed(seed)
    layer = VIEWS[kind](*channels, groups=groups, factor=factor, act_layer=ACTS[act][0], dtype=dtype)
    return randomize_norms(layer, seed).eval()


def norm_of(layer):
    return {key: getattr(layer.norm, key).detach() for key in slow.NORM_KEYS}


@given(layer_cases(), st.data())
@settings(max_examples=60, deadline=None)
def test_every_stage_prunes_what_the_definition_prunes(case, data):
    kind, _, groups, factor, _, _ = case
    layer = build(case)
    weight, mask = layer.conv.weight.detach(), layer.mask.clone()
    reached = 0
    while reached < layer.num_stages:
        stage = data.draw(st.integers(reached + 1, layer.num_stages))
        mask = slow_schedule.prune(weight, mask, groups, factor, reached, stage, kind)
        layer.prune_to(stage)
        assert torch.equal(layer.mask, mask)
        assert int(layer.stage) == reached + (stage - reached)
        reached = stage
        with torch.no_grad():
            weight.mul_(torch.rand_like(weight))


@given(layer_cases())
@settings(max_examples=80, deadline=None)
def test_both_forms_compute_what_the_definition_says(case):
    kind, channels, groups, _, act, _ = case
    layer = build(case)
    layer.prune_to(layer.num_stages)
    x = torch.randn(2, channels[0], 3, 4, dtype=torch.float64)
    slow_act = ACTS[act][1]
    norm, weight, mask = norm_of(layer), layer.conv.weight.detach(), layer.mask.clone()
    expected = getattr(slow, f'{kind}_masked')(x, norm, weight, mask, slow_act)
    condensed = getattr(slow, f'condense_{kind}')(norm, weight, mask, groups)
    expected_condensed = getattr(slow, f'{kind}_condensed')(x, condensed, slow_act)
    scale = max(expected.abs().max().item(), 1e-9)
    with torch.no_grad():
        masked = layer(x)
        layer.switch_to_deploy()
        deployed = layer(x)
    for actual in (masked, deployed, expected_condensed):
        assert (actual - expected).abs().max().item() <= 1e-10 * scale
    index = layer.gather.index if kind == 'lgc' else layer.scatter.index
    assert torch.equal(index, torch.as_tensor(condensed['index']))
    assert torch.equal(layer.conv.weight.detach(), condensed['weight'])


@given(st.integers(1, 200), st.integers(1, 12))
def test_kept_units_follow_the_formula(units, factor):
    kept = [kept_units(units, factor, stage) for stage in range(factor)]
    assert kept == [slow_schedule.alive_units(units, factor, stage) for stage in range(factor)]
    assert kept[0] == units if factor > 1 else kept == [units]
    assert kept[-1] == -(-units // factor)


@pytest.mark.parametrize('kind', sorted(VIEWS))
def test_group_lasso_is_the_definition(kind):
    layer = build((kind, (12, 18) if kind == 'lgc' else (18, 12), 3, 4, 'relu', 0))
    layer.prune_to(2)
    expected = slow_schedule.group_lasso(layer.conv.weight, layer.mask, 3, kind)
    assert torch.allclose(layer.group_lasso(), expected, rtol=1e-12)
    layer.prune_to(3)
    assert layer.group_lasso() == 0


def test_ties_prune_the_lower_channel_first():
    layer = GroupSparseConv2d(6, 4, groups=2, factor=3)
    nn.init.ones_(layer.conv.weight)
    layer.prune_to(1)
    assert layer.grouping.by_unit(layer.mask)[..., 0].tolist() == [[False, False, True, True, True, True]] * 2


@pytest.mark.parametrize('over', ['outputs', 'inputs'])
@pytest.mark.parametrize('stride', [1, 2])
def test_the_convolution_alone_condenses(over, stride):
    torch.manual_seed(0)
    layer = GroupSparseConv2d(12, 20, 4, 3, over, bias=over == 'outputs', stride=stride, dtype=torch.float64)
    layer.prune_to(2)
    x = torch.randn(2, 12, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        masked = layer(x)
        layer.switch_to_deploy()
        assert relative_difference(layer(x), masked) < 1e-12
    assert layer.conv.groups == 4 and layer.conv.stride == (stride, stride)

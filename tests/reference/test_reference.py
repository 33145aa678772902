"""The restatement agrees with itself, with PyTorch's own operators and with examples worked by hand."""

import itertools
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from .layers import (
    batch_norm,
    condense_lgc,
    condense_sfr,
    hard_swish,
    lgc_condensed,
    lgc_masked,
    relu,
    sfr_condensed,
    sfr_masked,
)
from .official import (
    NETS,
    convert,
    converted_file,
    count_parameters,
    forward,
    forward_features,
    random_state_dict,
    small,
    training_file,
    without_counters,
)
from .schedule import alive_units, group_lasso, prune, stage_at

EXACT = {'rtol': 0, 'atol': 1e-10}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_norm(channels, generator):
    return {
        'weight': torch.randn(channels, generator=generator, dtype=torch.double),
        'bias': torch.randn(channels, generator=generator, dtype=torch.double),
        'running_mean': torch.randn(channels, generator=generator, dtype=torch.double),
        'running_var': torch.rand(channels, generator=generator, dtype=torch.double) + 0.1,
    }


def as_weight(rows):
    return torch.tensor(rows, dtype=torch.double)[:, :, None, None]


@pytest.mark.parametrize(
    ('n', 'factor', 'expected'),
    [
        (16, 4, [16, 12, 8, 4]),
        (10, 4, [10, 8, 6, 3]),
        (58, 8, [58, 51, 44, 37, 30, 23, 16, 8]),
        (3, 8, [3, 3, 3, 3, 2, 2, 2, 1]),
        (7, 1, [7]),
        (5, 2, [5, 3]),
    ],
)
def test_alive_units_by_hand(n, factor, expected):
    assert [alive_units(n, factor, stage) for stage in range(factor)] == expected


def test_alive_units_is_n_over_factor_per_stage_where_it_divides():
    for factor, per_stage in itertools.product(range(2, 9), range(1, 7)):
        n = factor * per_stage
        assert [alive_units(n, factor, stage) for stage in range(factor)] == list(range(n, 0, -per_stage))


@pytest.mark.parametrize(
    ('progress', 'expected'), [(0.0, 0), (0.166, 0), (1 / 6, 1), (1 / 3, 2), (0.49, 2), (0.5, 3), (1.0, 3)]
)
def test_stages_of_factor_four_are_at_sixths(progress, expected):
    assert stage_at(progress, 4) == expected


def test_stages_end_where_the_sparse_fraction_ends():
    assert stage_at(0.9, 1) == 0
    for factor, fraction in itertools.product(range(2, 12), (0.1, 0.3, 0.5, 0.7, 1.0)):
        assert stage_at(fraction, factor, fraction) == factor - 1
        assert stage_at(fraction - 1e-9, factor, fraction) == factor - 2


def test_lgc_prunes_by_hand():
    # Outputs 0 and 2 are group 0, 1 and 3 are group 1. Column sums: group 0: 3 1 1 4; group 1: 2 2 0 5.
    weight = as_weight([[1, 0, 1, 2], [1, -1, 0, 2], [-2, 1, 0, -2], [1, 1, 0, 3]])
    mask = prune(weight, torch.ones_like(weight), 2, 4, 0, 1, 'lgc')
    assert mask[:, :, 0, 0].tolist() == [[1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 1]]
    mask = prune(weight, mask, 2, 4, 1, 3, 'lgc')
    assert mask[:, :, 0, 0].tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_sfr_prunes_by_hand():
    # Inputs 0 and 2 are group 0, 1 and 3 are group 1. Row sums: group 0: 3 1 1 4; group 1: 2 2 0 5 (a tie at 2).
    weight = as_weight([[1, 1, -2, 1], [0, -1, 1, 1], [1, 0, 0, 0], [2, 2, -2, 3]])
    mask = prune(weight, torch.ones_like(weight, dtype=torch.bool), 2, 2, 0, 1, 'sfr')
    assert mask.dtype == torch.bool
    assert mask[:, :, 0, 0].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_an_alive_unit_of_zeros_is_pruned_before_a_pruned_unit_counts_again():
    weight = as_weight([[3, 0, 5, 1]])
    mask = as_weight([[1, 1, 1, 0]])
    assert prune(weight, mask, 1, 4, 1, 2, 'lgc')[0, :, 0, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize('kind', ['lgc', 'sfr'])
@pytest.mark.parametrize(('outputs', 'inputs', 'groups', 'factor'), [(16, 12, 4, 3), (12, 24, 6, 8), (8, 8, 1, 5)])
def test_kept_counts_follow_the_formula(kind, outputs, inputs, groups, factor):
    if kind == 'sfr':
        outputs, inputs = inputs, outputs
        groups = groups if inputs % groups == 0 else 2
    weight = torch.randn(outputs, inputs, 1, 1, generator=seeded())
    mask = torch.ones_like(weight)
    n = inputs if kind == 'lgc' else outputs
    for stage in range(1, factor):
        mask = prune(weight, mask, groups, factor, stage - 1, stage, kind)
        for group in range(groups):
            part = mask[group::groups] if kind == 'lgc' else mask[:, group::groups]
            members = part.shape[0] if kind == 'lgc' else part.shape[1]
            assert part.sum() == members * alive_units(n, factor, stage)
    assert torch.equal(mask, prune(weight, torch.ones_like(weight), groups, factor, 0, factor - 1, kind))


def test_group_lasso_by_hand():
    weight = as_weight([[3, 1], [6, 0], [4, 0], [8, 0]])
    mask = as_weight([[1, 0], [1, 1], [1, 0], [1, 1]])
    assert group_lasso(weight, mask, 2, 'lgc').item() == pytest.approx(5 + 1e-3 + 10 + 1e-3)
    assert group_lasso(weight.transpose(0, 1), mask.transpose(0, 1), 2, 'sfr').item() == pytest.approx(15 + 2e-3)


def test_operators_are_those_of_pytorch():
    generator = seeded()
    x = torch.randn(2, 6, 5, 4, generator=generator, dtype=torch.double) * 3
    norm = random_norm(6, generator)
    expected = F.batch_norm(x, norm['running_mean'], norm['running_var'], norm['weight'], norm['bias'], eps=1e-5)
    torch.testing.assert_close(batch_norm(x, norm), expected)
    torch.testing.assert_close(hard_swish(x), F.hardswish(x))
    weight = torch.randn(8, 6, 1, 1, generator=generator, dtype=torch.double)
    mask = torch.rand(8, 6, 1, 1, generator=generator) < 0.5
    torch.testing.assert_close(lgc_masked(x, norm, weight, mask, relu), F.conv2d(F.relu(expected), weight * mask))


SHAPES = [(32, 24, 8, 8), (12, 30, 6, 4), (12, 10, 4, 4), (6, 9, 1, 3), (16, 8, 4, 1), (8, 3, 2, 8)]


@pytest.mark.parametrize('act', [relu, hard_swish])
@pytest.mark.parametrize(('outputs', 'inputs', 'groups', 'factor'), SHAPES)
def test_condensed_lgc_is_the_masked_one(outputs, inputs, groups, factor, act):
    generator = seeded()
    x = torch.randn(2, inputs, 4, 3, generator=generator, dtype=torch.double)
    norm = random_norm(inputs, generator)
    weight = torch.randn(outputs, inputs, 1, 1, generator=generator, dtype=torch.double)
    mask = prune(weight, torch.ones_like(weight), groups, factor, 0, factor - 1, 'lgc')
    condensed = condense_lgc(norm, weight, mask, groups)
    kept = -(-inputs // factor)
    assert condensed['weight'].shape == (outputs, kept, 1, 1)
    assert condensed['index'].shape == condensed['norm']['weight'].shape == (groups * kept,)
    torch.testing.assert_close(lgc_condensed(x, condensed, act), lgc_masked(x, norm, weight, mask, act), **EXACT)


@pytest.mark.parametrize('act', [relu, hard_swish])
@pytest.mark.parametrize(('inputs', 'outputs', 'groups', 'factor'), SHAPES)
def test_condensed_sfr_is_the_masked_one(inputs, outputs, groups, factor, act):
    generator = seeded()
    x = torch.randn(2, inputs, 4, 3, generator=generator, dtype=torch.double)
    norm = random_norm(inputs, generator)
    weight = torch.randn(outputs, inputs, 1, 1, generator=generator, dtype=torch.double)
    mask = prune(weight, torch.ones_like(weight), groups, factor, 0, factor - 1, 'sfr')
    condensed = condense_sfr(norm, weight, mask, groups)
    rows = groups * -(-outputs // factor)
    assert condensed['weight'].shape == (rows, inputs // groups, 1, 1)
    assert condensed['index'].shape == (rows,)
    torch.testing.assert_close(sfr_condensed(x, condensed, act), sfr_masked(x, norm, weight, mask, act), **EXACT)


def test_shuffle_is_pytorchs_channel_shuffle():
    weight = torch.randn(8, 4, 1, 1, generator=seeded(), dtype=torch.double)
    norm = random_norm(4, seeded(1))
    x = torch.randn(2, 4, 3, 3, generator=seeded(2), dtype=torch.double)
    condensed = condense_lgc(norm, weight, prune(weight, torch.ones_like(weight), 4, 2, 0, 1, 'lgc'), 4)
    grouped = F.conv2d(relu(batch_norm(x[:, condensed['index']], condensed['norm'])), condensed['weight'], groups=4)
    torch.testing.assert_close(lgc_condensed(x, condensed, relu), F.channel_shuffle(grouped, 4))


MIXED = {'group_1x1': 4, 'condense_factor': 8, 'group_trans': 2, 'trans_factor': 3}


@pytest.mark.parametrize(
    'net',
    [small('a'), small('b'), small('c', **MIXED), small('110-cifar'), small('74-g4'), small('86-cifar')],
    ids=['a', 'b', 'c, factors apart', '110-cifar', '74-g4', '86-cifar'],
)
def test_converted_network_is_the_training_one(net):
    state = random_state_dict(net, generator=seeded(), dtype=torch.double)
    converted = convert(state, net)
    assert not any(key.endswith(('_mask', '_count', '_stage')) for key in converted)
    x = torch.randn(2, 3, 32, 32, generator=seeded(1), dtype=torch.double)
    logits = forward(state, x, net)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(forward(converted, x, net), logits, **EXACT)
    torch.testing.assert_close(forward(without_counters(convert(without_counters(state), net)), x, net), logits)


def test_dropping_classifier_inputs_is_zeroing_their_weights():
    net = small('74-g4')
    state = random_state_dict(net, generator=seeded(), dtype=torch.double)
    converted = convert(state, net, drop_classifier_inputs=True)
    weight = state['classifier.weight'].clone()
    importance = weight.abs().sum(0)
    weak = importance.argsort()[: weight.shape[1] // 2]
    weight[:, weak] = 0
    assert converted['classifier.linear.weight'].shape == (10, weight.shape[1] // 2)
    assert importance[converted['classifier.index']].diff().min() >= 0
    x = torch.randn(2, 3, 32, 32, generator=seeded(1), dtype=torch.double)
    expected = forward(state | {'classifier.weight': weight}, x, net)
    torch.testing.assert_close(forward(converted, x, net), expected, **EXACT)


def test_every_part_of_the_network_shows_in_the_logits():
    net = small('c')
    state = random_state_dict(net, generator=seeded(), dtype=torch.double)
    x = torch.randn(2, 3, 64, 64, generator=seeded(1), dtype=torch.double)
    logits = forward(state, x, net)
    block_se = {key: value for key, value in state.items() if '.se.' not in key}
    last_se = {key: value for key, value in state.items() if '.se_last.' not in key}
    unmasked = {key: torch.ones_like(value) if '_mask' in key else value for key, value in state.items()}
    others = [
        forward(block_se, x, net),
        forward(last_se, x, net),
        forward(unmasked, x, net),
        forward(state, x, replace(net, hswish_from=2)),
        forward(state, x, replace(net, family='v1')),
        forward(state, x, replace(net, stem_stride=1)),
        forward(state, x.flip(0), net),
    ]
    assert all((other - logits).abs().max() > 0.01 for other in others)


def test_features_have_the_widths_and_sizes_of_the_blocks():
    net = small('a')
    state = random_state_dict(net, stage=0, generator=seeded())
    features = forward_features(state, torch.randn(1, 3, 64, 64, generator=seeded(1)), net)
    assert [tuple(f.shape[1:]) for f in features] == [(24, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]


def test_training_form_has_the_released_keys_and_shapes():
    state = random_state_dict(small('c', layers=(1, 1, 1, 1, 1)), stage=3, generator=seeded())
    norm = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    layer = ['conv_1._count', 'conv_1._stage', 'conv_1._mask', *[f'conv_1.norm.{key}' for key in norm]]
    layer += ['conv_1.conv.weight', *[f'conv_2.norm.{key}' for key in norm], 'conv_2.conv.weight']
    layer += ['sfr._count', 'sfr._stage', 'sfr._mask', *[f'sfr.norm.{key}' for key in norm], 'sfr.conv.weight']
    keys = ['features.init_conv.weight']
    for block in range(1, 6):
        squeeze = ['se.fc.0.weight', 'se.fc.2.weight'] if block > 3 else []
        keys += [f'features.denseblock_{block}.denselayer_1.{key}' for key in layer + squeeze]
    keys += [f'features.norm_last.{key}' for key in norm]
    keys += ['features.se_last.fc.0.weight', 'features.se_last.fc.2.weight']
    keys += ['fc.weight', 'fc.bias', 'classifier.weight', 'classifier.bias']
    assert list(state) == keys
    at = 'features.denseblock_2.denselayer_1'
    assert state[f'{at}.conv_1._mask'].shape == state[f'{at}.conv_1.conv.weight'].shape == (64, 24, 1, 1)
    assert state[f'{at}.sfr._mask'].shape == state[f'{at}.sfr.conv.weight'].shape == (24, 16, 1, 1)
    assert state[f'{at}.conv_2.conv.weight'].shape == (16, 8, 3, 3)
    for name in ('conv_1', 'sfr'):
        assert state[f'{at}.{name}._mask'].dtype == torch.float32
        assert state[f'{at}.{name}._stage'].tolist() == [3]
        assert state[f'{at}.{name}._count'].tolist() == [9]
        assert (state[f'{at}.{name}.norm.weight'] < 0).any()


def test_converted_form_has_the_released_keys_and_shapes():
    net = small('c', layers=(1, 1, 1, 1, 1))
    converted = convert(random_state_dict(net, generator=seeded()), net)
    at = 'features.denseblock_2.denselayer_1'
    assert converted[f'{at}.conv_1.index'].dtype == torch.int64
    assert converted[f'{at}.conv_1.norm.weight'].shape == converted[f'{at}.conv_1.index'].shape == (24,)
    assert converted[f'{at}.conv_1.conv.weight'].shape == (64, 3, 1, 1)
    assert converted[f'{at}.sfr.conv.weight'].shape == (24, 2, 1, 1)
    assert converted[f'{at}.sfr.index'].shape == (24, 24)
    assert converted[f'{at}.sfr.index'].dtype == torch.float32
    assert converted[f'{at}.sfr.index'].sum(1).tolist() == [1] * 24


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('a', 3_350_244),
        ('b', 6_311_412),
        ('c', 15_097_752),
        ('74-g4', 11_922_680),
        ('74-g8', 11_103_608),
        ('86-cifar', 1_451_594),
    ],
)
def test_parameters_in_training_form(name, parameters):
    assert count_parameters(random_state_dict(NETS[name], stage=0)) == parameters


def test_parameters_of_a_after_pruning():
    state = random_state_dict(NETS['a'], generator=seeded())
    pruned = sum(int((1 - value).sum()) for key, value in state.items() if key.endswith('._mask'))
    assert round((count_parameters(state) - pruned) / 1e6, 2) == 2.04


def test_training_files_of_v2_are_refused_by_a_weights_only_load(tmp_path):
    net = small('a')
    state = random_state_dict(net, stage=0, generator=seeded())
    torch.save(training_file(state, net, ema=state, model='cdnv2_a'), tmp_path / 'training.pth.tar')
    with pytest.raises(pickle.UnpicklingError, match='argparse.Namespace'):
        torch.load(tmp_path / 'training.pth.tar', weights_only=True)
    content = torch.load(tmp_path / 'training.pth.tar', weights_only=False)
    assert content['args'].growth == [8, 8, 16, 32, 64]
    assert content['args'].HS_start_block == 2
    assert list(content['state_dict_ema']) == list(state)


def test_files_of_v1_and_converted_files_load_weights_only(tmp_path):
    v1, v2 = small('74-g8'), small('a')
    state = random_state_dict(v1, stage=0, generator=seeded())
    torch.save(training_file(state, v1), tmp_path / 'v1.pth.tar')
    torch.save(converted_file(convert(random_state_dict(v2, generator=seeded()), v2), v2), tmp_path / 'v2.pth.tar')
    content = torch.load(tmp_path / 'v1.pth.tar', weights_only=True)
    assert all(
        key.startswith('module.features.') or key.startswith('module.classifier.') for key in content['state_dict']
    )
    content = torch.load(tmp_path / 'v2.pth.tar', weights_only=True)
    assert list(content) == ['state_dict']

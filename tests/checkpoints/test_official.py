"""Files of exactly the released layout: import, both forms, logits of the independent forward pass."""

import pickle
from dataclasses import replace
from functools import cache

import pytest
import timm
import torch

from cnv2_plugin.archs import VARIANTS, arch_from
from cnv2_plugin.checkpoints import CheckpointError, import_official, load_checkpoint
from cnv2_plugin.layers import UnfinishedPruningError

from ..helpers import relative_difference
from ..reference import official
from ..reference.official import Net, small

GROWTH = {'v2': (8, 16, 16, 24, 32), 'v1': (8, 16, 16, 16, 32)}
SMALL = {name: small(name, growth=GROWTH[net.family][: len(net.growth)]) for name, net in official.NETS.items()}
SMALL['b'] = small('b', growth=(6, 12, 12, 18, 24))
SMALL['three different numbers'] = Net(
    'v2', (2, 1, 2), (12, 24, 24), bottleneck=2, group_1x1=3, group_3x3=6, condense_factor=5, group_trans=4,
    trans_factor=7, hswish_from=2, se_from=3, last_se_reduction=16, fc_channel=20, num_classes=7,
)  # fmt: skip
SMALL['plain head'] = Net('v2', (2, 2), (8, 16), group_3x3=4, num_classes=3)


def untold(net: Net) -> dict:
    """What no tensor of a small network tells."""
    told = dict(stem_stride=net.stem_stride)
    return told if net.family == 'v1' else dict(told, hswish_from=net.hswish_from)


def images(net: Net, dtype=torch.float32) -> torch.Tensor:
    size = 32 * net.stem_stride
    return torch.randn(2, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(5))


@cache
def _state_of(net: Net, stage, dtype):
    return official.random_state_dict(net, stage, torch.Generator().manual_seed(3), dtype)


def state_of(net: Net, stage=None, dtype=torch.float32):
    return {key: value.clone() for key, value in _state_of(net, stage, dtype).items()}


def save(content, tmp_path, name='file.pth', **kwargs):
    torch.save(content, tmp_path / name, **kwargs)
    return tmp_path / name


def check(path, state, net, form, dtype=torch.float32, tolerance=1e-5, **overrides):
    """Import, build, load strictly, and compare both forms with the independent forward pass."""
    imported = import_official(path, **overrides)
    assert imported.form == form
    x = images(net, dtype)
    expected = official.forward(state, x, net)
    model = timm.create_model(imported.model_name, dtype=dtype, **imported.model_kwargs).eval()
    model.load_state_dict(imported.state_dict, strict=True)
    with torch.no_grad():
        assert relative_difference(model(x), expected) < tolerance
    if imported.finished:
        deployed = timm.create_model(imported.model_name, dtype=dtype, **imported.deploy_kwargs).eval()
        deployed.load_state_dict(imported.deployed_state_dict(), strict=True)
        with torch.no_grad():
            assert relative_difference(deployed(x), expected) < tolerance
    return imported


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('stage', [None, 3, 1])
def test_training_form(name, stage, tmp_path):
    net = SMALL[name]
    state = state_of(net, stage)
    path = save(official.training_file(state, net), tmp_path)
    imported = check(path, state, net, 'training', **(untold(net) if net.family == 'v1' else {}))
    factors = [net.condense_factor] + [net.trans_factor] * (net.family == 'v2')
    assert imported.stage == max(min(f - 1, f if stage is None else stage) for f in factors)
    assert imported.finished == (stage is None or stage >= max(factors) - 1)
    for key, mask in state.items():
        if key.endswith('_mask'):
            _, block, layer, part, _ = key.split('.')
            ours = f'stages.{int(block.split("_")[1]) - 1}.layers.{int(layer.split("_")[1]) - 1}.{part}.mask'
            assert torch.equal(imported.state_dict[ours], mask.bool())


@pytest.mark.parametrize('name', SMALL)
def test_converted_form(name, tmp_path):
    net = SMALL[name]
    state = official.convert(state_of(net), net)
    imported = check(save(official.converted_file(state, net), tmp_path), state, net, 'converted', **_factors(net))
    assert imported.finished


def _factors(net: Net) -> dict:
    """Converted files of a factor that divides nowhere leave several factors possible."""
    odd = dict(condense_factor=5, sparse_factor=7) if net is SMALL['three different numbers'] else {}
    return {**untold(net), **odd}


@pytest.mark.parametrize('name', ['c', '74-g8', 'three different numbers'])
def test_in_double_precision(name, tmp_path):
    net = SMALL[name]
    state = state_of(net, dtype=torch.float64)
    path = save(official.training_file(state, net), tmp_path)
    v1 = untold(net) if net.family == 'v1' else {}
    check(path, state, net, 'training', torch.float64, 1e-12, **v1)
    state = official.convert(state, net)
    path = save(official.converted_file(state, net), tmp_path)
    check(path, state, net, 'converted', torch.float64, 1e-12, **_factors(net))


@pytest.mark.parametrize('name', ['74-g4', '86-cifar'])
def test_halved_classifier(name, tmp_path):
    net = SMALL[name]
    state = official.convert(state_of(net), net, drop_classifier_inputs=True)
    imported = check(save(official.converted_file(state, net), tmp_path), state, net, 'converted', **untold(net))
    deployed = imported.deployed_state_dict()
    assert sorted(deployed['classifier.index'].tolist()) == sorted(state['classifier.index'].tolist())
    assert deployed['classifier.weight'].shape == state['classifier.linear.weight'].shape
    dropped = (imported.state_dict['classifier.weight'] == 0).all(0)
    assert int(dropped.sum()) == dropped.numel() - state['classifier.index'].numel()


def test_entries_nobody_reads_are_the_identity(tmp_path):
    net = SMALL['c']
    state = state_of(net)
    converted = official.convert(state, net)
    imported = import_official(save(converted, tmp_path), **untold(net))
    read = converted['features.denseblock_1.denselayer_1.conv_1.index'].unique()
    unread = [i for i in range(16) if i not in read.tolist()]
    at = 'stages.0.layers.0.conv_1'
    for name, value in dict(weight=1, bias=0, running_mean=0, running_var=1).items():
        theirs = state[f'features.denseblock_1.denselayer_1.conv_1.norm.{name}']
        ours = imported.state_dict[f'{at}.norm.{name}']
        assert torch.equal(ours[read], theirs[read])
        assert (ours[unread] == value).all()
    assert torch.equal(
        imported.state_dict[f'{at}.mask'], state['features.denseblock_1.denselayer_1.conv_1._mask'].bool()
    )


@pytest.mark.parametrize('name', ['c', '74-g8'])
def test_stage_zero(name, tmp_path):
    net = SMALL[name]
    state = state_of(net, stage=0)
    groups = dict(groups_1x1=8, condense_factor=8) | (dict(groups_sfr=8, sparse_factor=8) if net.family == 'v2' else {})
    path = save({'state_dict': state}, tmp_path)
    with pytest.raises(CheckpointError) as error:
        import_official(path)
    for field in [*groups, 'stem_stride']:
        assert field in str(error.value)
    imported = check(path, state, net, 'training', **untold(net), **groups)
    assert (imported.stage, imported.finished) == (0, False)
    assert all(mask.all() for key, mask in imported.state_dict.items() if key.endswith('.mask'))
    with pytest.raises(UnfinishedPruningError):
        imported.deployed_state_dict()


def test_stage_zero_with_args(tmp_path):
    net = SMALL['three different numbers']
    state = state_of(net, stage=0)
    imported = check(save(official.training_file(state, net), tmp_path), state, net, 'training')
    assert (imported.arch.groups_1x1, imported.arch.condense_factor) == (3, 5)
    assert (imported.arch.groups_sfr, imported.arch.sparse_factor) == (4, 7)


def test_imported_masks_go_on_pruning(tmp_path):
    net = SMALL['c']
    state = state_of(net, stage=3)
    imported = import_official(save(official.training_file(state, net), tmp_path))
    model = timm.create_model(imported.model_name, **imported.model_kwargs)
    model.load_state_dict(imported.state_dict)
    for layer in model.sparse_layers():
        before = layer.mask.clone()
        layer.prune_to(7)
        assert not (layer.mask & ~before).any()
    model.switch_to_deploy()


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s, net: s,
        lambda s, net: official.with_prefix(s),
        lambda s, net: {'state_dict': official.with_prefix(s)},
        lambda s, net: {'model': s, 'epoch': 3},
        lambda s, net: official.without_counters(s),
        lambda s, net: {
            'state_dict': {k: v + 1 if v.is_floating_point() else v for k, v in s.items()},
            'state_dict_ema': s,
        },
    ],
    ids=['bare', 'module.', 'state_dict module.', 'model', 'no num_batches_tracked', 'ema preferred'],
)
@pytest.mark.parametrize('form', ['training', 'converted'])
def test_wrappings(wrap, form, tmp_path):
    net = SMALL['110-cifar']
    state = state_of(net)
    state = state if form == 'training' else official.convert(state, net)
    check(save(wrap(state, net), tmp_path), state, net, form, **untold(net))


def test_plain_weights_on_request(tmp_path):
    net = SMALL['110-cifar']
    plain, averaged = state_of(net), official.random_state_dict(net, generator=torch.Generator().manual_seed(9))
    path = save(official.training_file(plain, net, ema=averaged), tmp_path)
    check(path, averaged, net, 'training')
    check(path, plain, net, 'training', use_ema=False)


def test_averaged_masks_that_have_settled(tmp_path):
    net = SMALL['c']
    state = state_of(net)
    averaged = {
        key: value * 0.99999 + 1e-9 if key.endswith(('_mask', '_stage', '_count')) else value
        for key, value in state.items()
    }
    check(save(official.training_file(state, net, ema=averaged), tmp_path), averaged, net, 'training')


def test_averaged_masks_of_an_unfinished_training(tmp_path):
    net = SMALL['c']
    state = state_of(net, stage=3)
    averaged = {key: value * 0.7 if key.endswith('_mask') else value for key, value in state.items()}
    path = save(official.training_file(state, net, ema=averaged), tmp_path)
    with pytest.raises(CheckpointError, match='use_ema=False'):
        import_official(path)
    check(path, state, net, 'training', use_ema=False)


def test_old_serialization_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    net = SMALL['74-g8']
    state = official.convert(state_of(net), net, drop_classifier_inputs=True)
    path = save(official.converted_file(state, net), tmp_path, _use_new_zipfile_serialization=False)
    check(path, state, net, 'converted', **untold(net))
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / 'file.safetensors')
    check(tmp_path / 'file.safetensors', state, net, 'converted', **untold(net))


@pytest.mark.parametrize(
    'name,variant', [pytest.param('b', 'condensenetv2_b', marks=pytest.mark.slow), ('a', 'condensenetv2_a')]
)
def test_published_networks_are_recognised(name, variant, tmp_path):
    net = official.NETS[name]
    state = official.convert(state_of(net), net)
    imported = import_official(save(official.converted_file(state, net), tmp_path))
    assert (imported.model_name, imported.model_kwargs) == (variant, dict(num_classes=1000))
    assert imported.arch == VARIANTS[variant].arch


@pytest.mark.slow
@pytest.mark.parametrize('name', ['a', 'c', '146-cifar', '74-g8', '86-cifar'])
def test_published_networks_at_full_size(name, tmp_path):
    net = official.NETS[name]
    state = state_of(net)
    imported = check(save(official.training_file(state, net), tmp_path), state, net, 'training')
    assert imported.model_name in VARIANTS and 'arch' not in imported.model_kwargs
    state = official.convert(state, net, drop_classifier_inputs=name.startswith('74'))
    check(save(official.converted_file(state, net), tmp_path), state, net, 'converted')


def test_custom_networks_carry_their_arch(tmp_path):
    net = SMALL['three different numbers']
    imported = import_official(save(official.training_file(state_of(net), net), tmp_path))
    assert imported.model_name == 'condensenetv2'
    arch = arch_from(type(imported.arch), imported.model_kwargs['arch'])
    assert arch == imported.arch
    assert (arch.layers, arch.growth, arch.hswish_from, arch.se_from) == ((2, 1, 2), (12, 24, 24), 2, 3)


def test_other_input_channels(tmp_path):
    net = SMALL['110-cifar']
    state = state_of(net)
    state['features.init_conv.weight'] = state['features.init_conv.weight'][:, :1].clone()
    imported = import_official(save({'state_dict': state}, tmp_path), **untold(net))
    assert imported.model_kwargs['in_chans'] == 1
    model = timm.create_model(imported.model_name, **imported.model_kwargs)
    model.load_state_dict(imported.state_dict)


class _Payload:
    """Would write a file if it were unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


@pytest.mark.parametrize('hidden_in_args', [False, True])
def test_a_namespace_is_admitted_but_nothing_that_runs(hidden_in_args, tmp_path):
    net = SMALL['110-cifar']
    content = official.training_file(state_of(net), net)
    import_official(save(content, tmp_path))
    marker = tmp_path / 'ran'
    if hidden_in_args:
        content['args'].payload = _Payload(marker)
    else:
        content['payload'] = _Payload(marker)
    path = save(content, tmp_path)
    with pytest.raises(CheckpointError, match='--trust'):
        import_official(path)
    assert not marker.exists()
    import_official(path, trust=True)
    assert marker.exists()


def test_admitting_a_namespace_does_not_outlast_the_load(tmp_path):
    net = SMALL['110-cifar']
    path = save(official.training_file(state_of(net), net), tmp_path)
    load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_overrides_must_be_fields_and_agree(tmp_path):
    net = SMALL['110-cifar']
    path = save(official.training_file(state_of(net), net), tmp_path)
    with pytest.raises(ValueError, match='no fields width; it takes layers'):
        import_official(path, width=3)
    with pytest.raises(CheckpointError, match=r'need growth=\(8, 16, 16\), but the arguments say \(8, 16, 64\)'):
        import_official(path, growth=[8, 16, 64])
    with pytest.raises(CheckpointError, match='condense_factor'):
        import_official(path, condense_factor=4)


def test_hard_swish_and_stride_are_asked_for(tmp_path):
    net = replace(SMALL['c'], num_classes=4)
    path = save(official.converted_file(official.convert(state_of(net), net), net), tmp_path)
    with pytest.raises(CheckpointError, match='nothing in the file tells hswish_from, stem_stride; give them'):
        import_official(path)
    with pytest.raises(CheckpointError, match='nothing in the file tells hswish_from; give it'):
        import_official(path, stem_stride=2)

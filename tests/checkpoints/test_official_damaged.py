"""Damaged files of the released layout: each gives one clear sentence, never a traceback or a silently wrong model."""

import argparse
from functools import cache

import pytest
import torch

from cnv2_plugin.checkpoints import CheckpointError, import_official
from cnv2_plugin.cli import main

from ..reference import official

V2 = official.small('110-cifar', growth=(8, 16, 16))
V1 = official.small('86-cifar', growth=(8, 8, 16))
AT = 'features.denseblock_2.denselayer_1'


@cache
def training(net=V2, stage=None):
    return official.random_state_dict(net, stage, torch.Generator().manual_seed(0))


@cache
def converted(net=V2, **kwargs):
    return official.convert(training(net), net, **kwargs)


def halved():
    return converted(V1, drop_classifier_inputs=True)


def change(state, key, value):
    assert key in state
    return {**state, key: value(state[key].clone()) if callable(value) else value}


def drop(state, *endings):
    left = {key: value for key, value in state.items() if not key.endswith(endings)}
    assert len(left) < len(state)
    return left


def put(index, value):
    def edit(tensor):
        tensor[index] = value
        return tensor

    return edit


def more_in_one_group(mask):
    """Group 0 gets a channel back."""
    row = mask[0, :, 0, 0]
    mask[::8, int((row == 0).nonzero()[0])] = 1
    return mask


def half_of_a_group(mask):
    """One output of a group reads a channel that the others do not."""
    mask[0, int((mask[0, :, 0, 0] == 0).nonzero()[0])] = 1
    mask[0, int((mask[8, :, 0, 0] == 1).nonzero()[0])] = 0
    return mask


def differing_copies(state):
    """Scale one of two copies of a channel's BN."""
    index = state[f'{AT}.conv_1.index']
    value, first = next((v, i) for i, v in enumerate(index.tolist()) if (index == v).sum() > 1)
    assert (index == value).sum() > 1
    return change(state, f'{AT}.conv_1.norm.running_mean', put(first, 3.0))


OVERRIDES = dict(stem_stride=1)
V2_OVERRIDES = dict(stem_stride=1, hswish_from=None)

DAMAGED = {
    'another network': (lambda: {'conv1.weight': torch.ones(3), 'fc.weight': torch.ones(3)}, 'no CondenseNet'),
    'our own form': (lambda: {'stem.weight': torch.ones(3), 'stages.0.x': torch.ones(3)}, 'our own form already'),
    'no tensors': (lambda: {'state_dict': {}, 'epoch': 3}, 'holds no tensors'),
    'a list': (lambda: [torch.ones(3)], 'holds a list'),
    'a bare number': (lambda: 3, 'holds a int'),
    'stem missing': (lambda: drop(training(), 'init_conv.weight'), 'lacks features.init_conv.weight'),
    'classifier missing': (lambda: drop(training(), 'classifier.weight'), 'lacks classifier.weight'),
    'bias missing': (lambda: drop(converted(), 'classifier.bias'), 'lacks classifier.bias'),
    'BN entry missing': (lambda: drop(training(), f'{AT}.conv_2.norm.running_var'), 'lacks .*running_var'),
    'mask missing': (lambda: drop(training(), f'{AT}.sfr._mask'), r'lacks .*sfr\._mask'),
    'stage missing': (lambda: drop(training(), f'{AT}.sfr._stage'), r'lacks .*sfr\._stage'),
    'count missing': (lambda: drop(training(), f'{AT}.conv_1._count'), r'lacks .*conv_1\._count'),
    'index missing': (lambda: drop(converted(), f'{AT}.conv_1.index'), r'lacks .*conv_1\.index'),
    'a layer missing': (
        lambda: {k: v for k, v in training().items() if not k.startswith(f'{AT}.')}, f'lacks {AT}'
    ),
    'a block missing': (
        lambda: {k: v for k, v in training().items() if 'denseblock_2' not in k}, f'lacks {AT}'
    ),
    'last layer of a block missing': (
        lambda: {k: v for k, v in training().items() if 'denseblock_1.denselayer_2' not in k}, 'has the shape'
    ),
    'one layer without SFR': (lambda: {k: v for k, v in training().items() if f'{AT}.sfr' not in k}, 'lacks .*sfr'),
    'a tensor too many': (lambda: {**training(), 'features.extra.weight': torch.ones(2)}, 'no place for.*extra'),
    'both forms': (lambda: {**training(), f'{AT}.conv_1.index': torch.arange(4)}, 'mixes the training form'),
    'neither form': (lambda: drop(training(), '_mask', '_stage', '_count'), 'neither masks'),
    'weight of another shape': (lambda: change(training(), f'{AT}.conv_1.conv.weight', lambda w: w[:, 1:]), 'shape'),
    'weight with other dimensions': (
        lambda: change(training(), f'{AT}.conv_2.conv.weight', lambda w: w.flatten(1)), 'shape'
    ),
    'stem of another size': (lambda: change(training(), 'features.init_conv.weight', lambda w: w[:-1]), 'init_conv'),
    'classifier of another width': (
        lambda: change(training(), 'classifier.weight', lambda w: w[:, 1:]), 'classifier.weight'
    ),
    'NaN': (lambda: change(training(), f'{AT}.sfr.conv.weight', put((0, 0), float('nan'))), 'NaN'),
    'negative variance': (lambda: change(training(), f'{AT}.sfr.norm.running_var', put(0, -1.0)), 'negative'),
    'mask of other values': (lambda: change(training(), f'{AT}.conv_1._mask', put((0, 0), 0.5)), 'besides 0 and 1'),
    'mask above one': (lambda: change(training(), f'{AT}.conv_1._mask', put((0, 0), 2.0)), 'besides 0 and 1'),
    'mask of unequal groups': (lambda: change(training(), f'{AT}.conv_1._mask', more_in_one_group), 'all groups keep'),
    'mask that splits a group': (lambda: change(training(), f'{AT}.conv_1._mask', half_of_a_group), 'number of groups'),
    'mask that fits no stage': (lambda: change(training(stage=3), f'{AT}.conv_1._stage', put(0, 5.0)), 'stage 5|keeps'),
    'stage beyond the last': (lambda: change(training(), f'{AT}.conv_1._stage', put(0, 9.0)), 'keeps|factor'),
    'stage set back to zero': (lambda: change(training(), f'{AT}.conv_1._stage', put(0, 0.0)), 'stage 0'),
    'negative stage': (lambda: change(training(), f'{AT}.conv_1._stage', put(0, -1.0)), 'whole number'),
    'stage of two numbers': (lambda: change(training(), f'{AT}.conv_1._stage', torch.ones(2)), 'has 2 numbers'),
    'count that does not fit': (lambda: change(training(), f'{AT}.conv_1._count', lambda c: c + 1), '_count'),
    'index out of range': (lambda: change(converted(), f'{AT}.conv_1.index', put(0, 10**6)), 'must lie in 0 to'),
    'negative index': (lambda: change(converted(), f'{AT}.conv_1.index', put(0, -1)), 'must lie in 0 to'),
    'channel twice in a group': (
        lambda: change(converted(), f'{AT}.conv_1.index', lambda i: put(0, i[1])(i)), 'twice in group 0'
    ),
    'index of another length': (lambda: change(converted(), f'{AT}.conv_1.index', lambda i: i[:-1]), 'groups'),
    'copies of BN that differ': (lambda: differing_copies(converted()), 'copies of channel'),
    'row with two ones': (lambda: change(converted(), f'{AT}.sfr.index', put(0, 1.0)), 'row 0 is not one-hot'),
    'row of zeros': (lambda: change(converted(), f'{AT}.sfr.index', put(3, 0.0)), 'row 3 is not one-hot'),
    'row with a half': (lambda: change(converted(), f'{AT}.sfr.index', lambda i: i * 0.5), 'not one-hot'),
    'feature twice in a group': (
        lambda: change(converted(), f'{AT}.sfr.index', lambda i: put(0, i[1])(i)), 'twice in group 0'
    ),
    'SFR index of another width': (lambda: change(converted(), f'{AT}.sfr.index', lambda i: i[:, 1:]), 'sfr'),
    'SFR rows that are no whole groups': (
        lambda: change(converted(), f'{AT}.sfr.conv.weight', lambda w: w[:-1]), 'whole number of groups|sfr'
    ),
    'groups that differ between layers': (
        lambda: change(
            change(converted(), f'{AT}.sfr.conv.weight', lambda w: w[:, :1].repeat(1, 4, 1, 1)),
            f'{AT}.sfr.index', lambda i: i,
        ),
        'number of groups',
    ),
    'half classifier without its linear': (
        lambda: drop(halved(), 'classifier.linear.weight'), 'lacks classifier.linear.weight'
    ),
    'half classifier with an input twice': (
        lambda: change(halved(), 'classifier.index', lambda i: put(0, i[1])(i)),
        'classifier.index must list different',
    ),
    'half classifier out of range': (
        lambda: change(halved(), 'classifier.index', put(0, 10**6)), 'classifier.index'
    ),
    'half classifier of another length': (
        lambda: change(halved(), 'classifier.index', lambda i: i[1:]), 'classifier.index'
    ),
    'args of another network': (
        lambda: {'state_dict': training(), 'args': argparse.Namespace(growth=[8, 16, 64])}, 'need growth'
    ),
    'args of other groups': (
        lambda: {'state_dict': training(), 'args': argparse.Namespace(group_1x1=4)}, 'need groups_1x1'
    ),
    'args with nonsense': (
        lambda: {'state_dict': training(), 'args': argparse.Namespace(stages='many', growth=None)}, 'need layers'
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_content(case, tmp_path, capsys):
    make, expected = DAMAGED[case]
    torch.save(make(), tmp_path / 'damaged.pth')
    overrides = OVERRIDES if case.startswith('half classifier') else V2_OVERRIDES
    with pytest.raises(CheckpointError, match=expected) as error:
        import_official(tmp_path / 'damaged.pth', **overrides)
    assert str(error.value).count('\n') == 0
    arguments = [f'{name}={value}' for name, value in overrides.items()]
    out = tmp_path / 'out.pth'
    assert main(['import-official', str(tmp_path / 'damaged.pth'), '--out', str(out), '--arch', *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith('cnv2 import-official: ') and shown.count('\n') == 1
    assert [p.name for p in tmp_path.iterdir()] == ['damaged.pth']


@pytest.mark.parametrize('name', ['damaged.pth', 'damaged.safetensors'])
@pytest.mark.parametrize('case', ['missing', 'empty', 'truncated', 'noise', 'a page', 'a folder'])
def test_damaged_bytes(case, name, tmp_path, capsys):
    path = tmp_path / name
    if case == 'a folder':
        path.mkdir()
    elif case != 'missing':
        torch.save(training(), path)
        whole = path.read_bytes()
        path.write_bytes(
            {'empty': b'', 'truncated': whole[: len(whole) // 2], 'noise': bytes(range(256)) * 40, 'a page': b'<html>'}[
                case
            ]
        )
    with pytest.raises(CheckpointError):
        import_official(path)
    assert main(['import-official', str(path), '--out', str(tmp_path / 'out.pth')]) == 1
    assert capsys.readouterr().err.count('\n') == 1
    assert not (tmp_path / 'out.pth').exists()


def test_undamaged_files_are_read(tmp_path):
    for state, overrides in (
        (training(), V2_OVERRIDES),
        (converted(), V2_OVERRIDES),
        (training(V1), OVERRIDES),
        (halved(), OVERRIDES),
    ):
        torch.save(state, tmp_path / 'whole.pth')
        import_official(tmp_path / 'whole.pth', **overrides)

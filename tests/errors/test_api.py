"""Wrong uses of the Python interface: each gives one sentence that says what was given and what is accepted."""

import pytest
import timm
import torch
from torch import nn

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.analysis import connection_map, sparsity_report
from cnv2_plugin.archs import CondenseNetArch, ShuffleNetArch, arch_from, find_variant
from cnv2_plugin.benchmark import benchmark, interleave
from cnv2_plugin.checkpoints import atomic_path, find_state_dict, import_official, init_from_shufflenet, save_checkpoint
from cnv2_plugin.deploy import condense, export_onnx, verify
from cnv2_plugin.layers import (
    GroupSparseConv2d,
    LearnedGroupConv,
    SelectiveLinear,
    SparseFeatureReactivation,
    UnfinishedPruningError,
)
from cnv2_plugin.sparsify import SparsificationSchedule, StagedSparsifier
from cnv2_plugin.toolkits.key_map import convert_keys
from tests.errors.cases import check_sentence
from tests.helpers import finish_pruning

SMALL = dict(layers=[1, 1], growth=[8, 8], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=3, sparse_factor=2)


def small(**options):
    return timm.create_model('condensenetv2', **{**dict(arch=SMALL, num_classes=4), **options})


def lgc(**options):
    return LearnedGroupConv(8, 8, 4, 4, **options)


def poisoned(value):
    layer = lgc()
    with torch.no_grad():
        layer.conv.weight[3, 2] = value
    return layer


def with_stage(stage):
    model = small()
    state = model.state_dict()
    state['stages.0.layers.0.conv_1.stage'] = torch.tensor(stage)
    return model.load_state_dict(state)


def load_into(model, state):
    return model.load_state_dict(state)


SHAPE = 'whole numbers of at least 1'
API = {
    'unknown variant': (lambda: find_variant('condensenetv2_x'), ValueError, ('condensenetv2_x', 'did you mean')),
    'arch is text': (lambda: arch_from(CondenseNetArch, 'b'), TypeError, ('str', 'dict of its fields')),
    'arch with an unknown field': (lambda: small(arch=dict(SMALL, depth=3)), ValueError, ('depth', 'it takes layers')),
    'arch without growth': (lambda: arch_from(CondenseNetArch, dict(layers=[1])), ValueError, ('growth', 'give')),
    'arch with no stages': (lambda: CondenseNetArch((), ()), ValueError, ('layers=()', SHAPE)),
    'arch with zero layers': (lambda: CondenseNetArch((0,), (8,)), ValueError, ('layers=(0,)', SHAPE)),
    'arch with a fraction': (lambda: CondenseNetArch((1.5,), (8,)), ValueError, ('layers=(1.5,)', SHAPE)),
    'arch of two lengths': (lambda: CondenseNetArch((1, 2), (8,)), ValueError, ('2 blocks', 'give one number')),
    'growth not divisible': (lambda: CondenseNetArch((1,), (10,)), ValueError, ('groups_3x3=8', '10', 'multiple')),
    'negative groups': (lambda: CondenseNetArch((1,), (8,), groups_sfr=-8), ValueError, ('groups_sfr=-8', '0 for')),
    'factor of zero': (lambda: CondenseNetArch((1,), (8,), condense_factor=0), ValueError, ('condense_factor=0',)),
    'se from block 0': (lambda: CondenseNetArch((1,), (8,), se_from=0), ValueError, ('se_from=0', 'at least 1')),
    'head without width': (lambda: CondenseNetArch((1,), (8,), head_width=0), ValueError, ('head_width=0',)),
    'odd shuffle width': (lambda: ShuffleNetArch((49,), (4,)), ValueError, ('(49,)', 'even')),
    'shuffle of two lengths': (lambda: ShuffleNetArch((48,), (4, 8)), ValueError, ('(48,)', 'one number a stage')),
    'SFR in a CondenseNet': (
        lambda: timm.create_model('condensenet', arch=dict(SMALL)), ValueError, ('groups_sfr=0', 'groups_sfr=4')),
    'layer groups': (lambda: LearnedGroupConv(8, 10, 4, 4), ValueError, ('groups=4', 'out_channels=10', 'multiple')),
    'SFR groups': (lambda: SparseFeatureReactivation(10, 8, 4, 4), ValueError, ('groups=4', 'in_channels=10')),
    'no channels': (lambda: LearnedGroupConv(0, 8), ValueError, ('in_channels is 0', 'at least 1')),
    'channels as float': (lambda: LearnedGroupConv(8.0, 8), ValueError, ('in_channels is 8.0', 'whole number')),
    'factor of layer': (lambda: LearnedGroupConv(8, 8, 4, 0), ValueError, ('factor is 0', 'at least 1')),
    'grouped side': (
        lambda: GroupSparseConv2d(8, 8, grouped_side='both'), ValueError, ("'both'", "'outputs' or 'inputs'")),
    'SFR with a bias': (
        lambda: GroupSparseConv2d(8, 8, grouped_side='inputs', bias=True), ValueError, ('bias', 'outputs')),
    'stage too high': (lambda: lgc().prune_to(4), ValueError, ('stage is 4', '0 to 3')),
    'stage negative': (lambda: lgc().prune_to(-1), ValueError, ('stage is -1', '0 to 3')),
    'NaN at a stage': (lambda: poisoned(float('nan')).prune_to(1), ValueError, ('NaN or infinite', 'resume')),
    'Inf at a stage': (lambda: poisoned(float('inf')).prune_to(1), ValueError, ('NaN or infinite', 'resume')),
    'deploy at stage 0': (lambda: small().switch_to_deploy(), UnfinishedPruningError, ('stages.0.layers.0', 'finish')),
    'layer deploy at stage 0': (
        lambda: lgc().switch_to_deploy(), UnfinishedPruningError, ('stage 0 of 3', 'prune_to(3)')),
    'packing at stage 0': (
        lambda: lgc().switch_to_packed(), UnfinishedPruningError, ('stage 0 of 3', 'prune_to')),
    'condensing layer norm': (
        lambda: condense(finish_pruning(lgc(norm_layer=lambda c: nn.GroupNorm(2, c)))),
        TypeError, ('GroupNorm', 'batch normalisation')),
    'classifier share': (
        lambda: condense(finish_pruning(small()), classifier_keep=2.0), ValueError, ('is 2.0', 'at most 1')),
    'classifier of a backbone': (
        lambda: condense(finish_pruning(lgc()), classifier_keep=0.5), ValueError,
        ('no linear classifier', 'leave it out')),
    'classifier share in training': (lambda: small(classifier_keep=0.5), ValueError, ('0.5', 'deploy=True')),
    'kept inputs': (lambda: SelectiveLinear(4, 5, 2), ValueError, ('kept is 5', '1 to 4')),
    'no steps': (lambda: StagedSparsifier(small(), 0), ValueError, ('total_steps is 0', 'number of optimiser steps')),
    'steps as float': (lambda: StagedSparsifier(small(), 10.5), ValueError, ('10.5', 'number of optimiser steps')),
    'too few steps': (lambda: StagedSparsifier(small(), 3), ValueError, ('total_steps=3', 'at least 4')),
    'sparse fraction 0': (lambda: SparsificationSchedule(0.0), ValueError, ('0.0', 'above 0 and at most 1')),
    'sparse fraction 2': (lambda: StagedSparsifier(small(), 9, 2.0), ValueError, ('2.0', 'above 0 and at most 1')),
    'negative lasso': (lambda: StagedSparsifier(small(), 9, group_lasso=-1.0), ValueError, ('-1.0', 'at least 0')),
    'progress beyond the end': (
        lambda: StagedSparsifier(small(), 9).set_progress(1.5), ValueError, ('progress is 1.5', '0 and 1')),
    'progress NaN': (
        lambda: StagedSparsifier(small(), 9).set_progress(float('nan')), ValueError, ('progress is nan', '0 and 1')),
    'nothing to sparsify': (lambda: StagedSparsifier(nn.Linear(2, 2), 9), ValueError, ('Linear', 'no group-sparse')),
    'resume of another length': (
        lambda: StagedSparsifier(small(), 9).load_state_dict(StagedSparsifier(small(), 10).state_dict()),
        ValueError, ('total_steps=10', '9')),
    'resume of another state': (
        lambda: StagedSparsifier(small(), 9).load_state_dict(dict(epoch=1)), ValueError, ('total_steps', 'state_dict')),
    'deployed state into training': (
        lambda: load_into(small(), condense(finish_pruning(small()).eval()).state_dict()), RuntimeError,
        ('condensed form', 'deploy=True')),
    'training state into deployed': (
        lambda: load_into(small(deploy=True), small().state_dict()), RuntimeError, ('training form', 'switch')),
    'mask and stage disagree': (lambda: with_stage(1), RuntimeError, ('mask and stage disagree', 'at stage 1')),
    'stage out of range': (lambda: with_stage(7), RuntimeError, ('stage is 7', '0 to 2')),
    'index out of range': (
        lambda: load_into(small(deploy=True), {
            k: torch.full_like(v, 999) if k.endswith('conv_1.gather.index') else v
            for k, v in small(deploy=True).state_dict().items()}),
        RuntimeError, ('gather.index', '999')),
    'input of rank 3': (lambda: small()(torch.randn(3, 32, 32)), ValueError, ('(3, 32, 32)', '(N, 3, H, W)')),
    'input of two channels': (lambda: small()(torch.randn(1, 2, 9, 9)), ValueError, ('(1, 2, 9, 9)', '(N, 3, H, W)')),
    'input in float64': (
        lambda: small()(torch.randn(1, 3, 32, 32).double()), ValueError, ('float64', 'float32')),
    'input on another device': (
        lambda: small()(torch.empty(1, 3, 32, 32, device='meta')), ValueError, ('meta', 'cpu')),
    'verify with other outputs': (
        lambda: verify(small(), small(num_classes=5), (3, 32, 32), 1), RuntimeError, ('(1, 4)', '(1, 5)')),
    'verify with a bad size': (lambda: verify(small(), small(), (3, 32)), ValueError, ('(3, 32)', '(C, H, W)')),
    'verify with no inputs': (lambda: verify(small(), small(), num_inputs=0), ValueError, ('num_inputs is 0',)),
    'export with batch 0': (
        lambda: export_onnx(small(), 'x.onnx', batch=0), ValueError, ('batch is 0', "'dynamic'")),
    'export with a bad size': (
        lambda: export_onnx(small(), 'x.onnx', (3, 0, 5)), ValueError, ('(3, 0, 5)', '(C, H, W)')),
    'export into no folder': (
        lambda: export_onnx(finish_pruning(small()).eval(), 'no/such/x.onnx', (3, 32, 32)), OSError,
        ('no/such', 'make it first')),
    'save into no folder': (
        lambda: save_checkpoint({'w': torch.zeros(1)}, 'no/such/x.pth'), OSError, ('no/such', 'make it first')),
    'save onto a folder': (lambda: save_checkpoint({'w': torch.zeros(1)}, '.'), OSError, ('folder',)),
    'save what is no tensor': (
        lambda: save_checkpoint({'w': [1]}, 'x.pth'), TypeError, ("'w'", 'list', 'tensors')),
    'checkpoint without tensors': (lambda: find_state_dict(dict(epoch=3)), RuntimeError, ('epoch', 'model weights')),
    'override of no field': (
        lambda: import_official('x.pth', depth=3), (ValueError, RuntimeError), ('x.pth', 'give')),
    'keys of nobody': (lambda: convert_keys({'w': torch.zeros(1)}, 'timm'), ValueError, ('keys (w', 'import-official')),
    'keys to nowhere': (lambda: convert_keys({}, 'keras'), ValueError, ("'keras'", "'timm'")),
    'SFR start of a dense net': (
        lambda: init_from_shufflenet(small(), {}), ValueError, ('CondenseNet', 'SFR-ShuffleNetV2')),
    'map of a linear layer': (lambda: connection_map(nn.Linear(2, 2), 'lgc'), ValueError, ('Linear', 'families')),
    'sparsity of a linear layer': (lambda: sparsity_report(nn.Linear(2, 2)), ValueError, ('Linear', 'no group-sparse')),
    'benchmark of an unknown form': (
        lambda: benchmark({'m': small()}, forms=('fast',)), ValueError, ('form fast', 'choose from')),
    'benchmark with no rounds': (lambda: interleave({'m': lambda: None}, 0), ValueError, ('rounds is 0', 'at least 1')),
    'pretrained without an address': (
        lambda: timm.create_model('condensenetv2_a', pretrained=True), RuntimeError, ('condensenetv2_a', 'http')),
}  # fmt: skip


@pytest.mark.parametrize('name', API)
def test_wrong_uses_give_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use, kind, expected = API[name]
    with pytest.raises(kind) as caught:
        use()
    message = str(caught.value)
    if 'Error(s) in loading state_dict' in message:
        message = next(line.strip() for line in message.splitlines()[1:] if expected[0] in line)
    check_sentence(message, *expected)
    assert list(tmp_path.iterdir()) == []


def test_a_nan_layer_is_named_and_no_mask_changes():
    model = small()
    with torch.no_grad():
        model.stages[1].layers[0].sfr.conv.weight[0, 0] = float('nan')
    masks = [layer.mask.clone() for layer in model.sparse_layers()]
    with pytest.raises(ValueError, match=r'stages\.1\.layers\.0\.sfr'):
        StagedSparsifier(model, 10).set_progress(1.0)
    assert all(torch.equal(layer.mask, mask) for layer, mask in zip(model.sparse_layers(), masks))


def test_there_are_enough_wrong_uses():
    assert len(API) >= 60


def test_nothing_is_left_when_the_disk_is_full(tmp_path, monkeypatch):
    (tmp_path / 'x.pth').write_bytes(b'old')

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match='No space left'):
        save_checkpoint({'w': torch.zeros(4)}, tmp_path / 'x.pth')
    assert (tmp_path / 'x.pth').read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError), atomic_path(tmp_path / 'no/y'):
        pass

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
from tests.errors.cases import check_sentence, names
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
    'unknown variant': (
        lambda: find_variant('condensenetv2_x'), ValueError, ('variant', 'condensenetv2_x', 'condensenetv2_a')),
    'arch is text': (lambda: arch_from(CondenseNetArch, 'b'), TypeError, ('arch', 'str', 'dict')),
    'arch with an unknown field': (
        lambda: small(arch=dict(SMALL, depth=3)), ValueError, ('arch', 'depth', 'layers', 'growth')),
    'arch without growth': (lambda: arch_from(CondenseNetArch, dict(layers=[1])), ValueError, ('growth',)),
    'arch with no stages': (lambda: CondenseNetArch((), ()), ValueError, ('layers', '()', '1')),
    'arch with zero layers': (lambda: CondenseNetArch((0,), (8,)), ValueError, ('layers', '(0,)', '1')),
    'arch with a fraction': (lambda: CondenseNetArch((1.5,), (8,)), ValueError, ('layers', '(1.5,)', '1')),
    'arch of two lengths': (lambda: CondenseNetArch((1, 2), (8,)), ValueError, ('growth', '(8,)', 'layers=(1, 2)')),
    'growth not divisible': (lambda: CondenseNetArch((1,), (10,)), ValueError, ('growth', '10', 'groups_3x3=8')),
    'negative groups': (lambda: CondenseNetArch((1,), (8,), groups_sfr=-8), ValueError, ('groups_sfr', '-8', '0')),
    'factor of zero': (
        lambda: CondenseNetArch((1,), (8,), condense_factor=0), ValueError, ('condense_factor', '0', '1')),
    'se from block 0': (lambda: CondenseNetArch((1,), (8,), se_from=0), ValueError, ('se_from', '0', '1')),
    'head without width': (lambda: CondenseNetArch((1,), (8,), head_width=0), ValueError, ('head_width', '0', '1')),
    'odd shuffle width': (lambda: ShuffleNetArch((49,), (4,)), ValueError, ('channels', '(49,)', 'even')),
    'shuffle of two lengths': (
        lambda: ShuffleNetArch((48,), (4, 8)), ValueError, ('repeats', '(4, 8)', 'channels=(48,)')),
    'SFR in a CondenseNet': (
        lambda: timm.create_model('condensenet', arch=dict(SMALL)), ValueError, ('groups_sfr', '4', '0')),
    'layer groups': (lambda: LearnedGroupConv(8, 10, 4, 4), ValueError, ('groups', '4', 'out_channels=10', '5', '12')),
    'SFR groups': (
        lambda: SparseFeatureReactivation(10, 8, 4, 4), ValueError, ('groups', '4', 'in_channels=10', '5', '12')),
    'no channels': (lambda: LearnedGroupConv(0, 8), ValueError, ('in_channels', '0', '1')),
    'channels as float': (lambda: LearnedGroupConv(8.0, 8), ValueError, ('in_channels', '8.0', '1')),
    'factor of layer': (lambda: LearnedGroupConv(8, 8, 4, 0), ValueError, ('factor', '0', '1')),
    'grouped side': (
        lambda: GroupSparseConv2d(8, 8, grouped_side='both'), ValueError,
        ('grouped_side', "'both'", "'outputs'", "'inputs'")),
    'SFR with a bias': (
        lambda: GroupSparseConv2d(8, 8, grouped_side='inputs', bias=True), ValueError, ('bias', 'True', "'outputs'")),
    'stage too high': (lambda: lgc().prune_to(4), ValueError, ('stage', '4', '0', '3')),
    'stage negative': (lambda: lgc().prune_to(-1), ValueError, ('stage', '-1', '0', '3')),
    'NaN at a stage': (lambda: poisoned(float('nan')).prune_to(1), ValueError, ('weights', 'NaN')),
    'Inf at a stage': (lambda: poisoned(float('inf')).prune_to(1), ValueError, ('weights', 'infinite')),
    'deploy at stage 0': (
        lambda: small().switch_to_deploy(), UnfinishedPruningError,
        ('stages.0.layers.0.conv_1', 'stage 0', 'prune_to')),
    'layer deploy at stage 0': (
        lambda: lgc().switch_to_deploy(), UnfinishedPruningError, ('LearnedGroupConv', 'stage 0', 'prune_to(3)')),
    'packing at stage 0': (
        lambda: lgc().switch_to_packed(), UnfinishedPruningError, ('LearnedGroupConv', 'stage 0', 'prune_to(3)')),
    'condensing layer norm': (
        lambda: condense(finish_pruning(lgc(norm_layer=lambda c: nn.GroupNorm(2, c)))),
        TypeError, ('norm_layer', 'GroupNorm', 'torch.nn.BatchNorm2d')),
    'classifier share': (
        lambda: condense(finish_pruning(small()), classifier_keep=2.0), ValueError,
        ('classifier_keep', '2.0', '0', '1')),
    'classifier of a backbone': (
        lambda: condense(finish_pruning(lgc()), classifier_keep=0.5), ValueError,
        ('classifier_keep', '0.5')),
    'classifier share in training': (
        lambda: small(classifier_keep=0.5), ValueError, ('classifier_keep', '0.5', 'deploy=True')),
    'kept inputs': (lambda: SelectiveLinear(4, 5, 2), ValueError, ('kept', '5', '1', '4')),
    'no steps': (lambda: StagedSparsifier(small(), 0), ValueError, ('total_steps', '0')),
    'steps as float': (lambda: StagedSparsifier(small(), 10.5), ValueError, ('total_steps', '10.5')),
    'too few steps': (lambda: StagedSparsifier(small(), 3), ValueError, ('total_steps', '3', '4')),
    'sparse fraction 0': (lambda: SparsificationSchedule(0.0), ValueError, ('sparse_fraction', '0.0', '0', '1')),
    'sparse fraction 2': (lambda: StagedSparsifier(small(), 9, 2.0), ValueError, ('sparse_fraction', '2.0', '0', '1')),
    'negative lasso': (
        lambda: StagedSparsifier(small(), 9, group_lasso=-1.0), ValueError, ('group_lasso', '-1.0', '0')),
    'progress beyond the end': (
        lambda: StagedSparsifier(small(), 9).set_progress(1.5), ValueError, ('progress', '1.5', '0', '1')),
    'progress NaN': (
        lambda: StagedSparsifier(small(), 9).set_progress(float('nan')), ValueError, ('progress', 'nan', '0', '1')),
    'nothing to sparsify': (
        lambda: StagedSparsifier(nn.Linear(2, 2), 9), ValueError, ('Linear', 'group-sparse', 'nothing')),
    'fewer steps than were done': (
        lambda: StagedSparsifier(small(), 9).load_state_dict(
            {**StagedSparsifier(small(), 10).state_dict(), 'steps_done': 10}),
        ValueError, ('total_steps', '9', '10', 'more steps')),
    'resume of another state': (
        lambda: StagedSparsifier(small(), 9).load_state_dict(dict(epoch=1)), ValueError,
        ('total_steps', '', 'StagedSparsifier.state_dict()')),
    'deployed state into training': (
        lambda: load_into(small(), condense(finish_pruning(small()).eval()).state_dict()), RuntimeError,
        ('stages.0.layers.0.conv_1', 'condensed', 'deploy=True')),
    'training state into deployed': (
        lambda: load_into(small(deploy=True), small().state_dict()), RuntimeError,
        ('stages.0.layers.0.conv_1', 'training', 'deploy=False', 'switch_to_deploy()')),
    'mask and stage disagree': (lambda: with_stage(1), RuntimeError, ('mask', 'stage 1', '11')),
    'stage out of range': (lambda: with_stage(7), RuntimeError, ('stage', '7', '0', '2')),
    'index out of range': (
        lambda: load_into(small(deploy=True), {
            k: torch.full_like(v, 999) if k.endswith('conv_1.gather.index') else v
            for k, v in small(deploy=True).state_dict().items()}),
        RuntimeError, ('gather.index', '999', '0', '15')),
    'input of rank 3': (lambda: small()(torch.randn(3, 32, 32)), ValueError, ('images', '(3, 32, 32)', '(N, 3, H, W)')),
    'input of two channels': (
        lambda: small()(torch.randn(1, 2, 9, 9)), ValueError, ('images', '(1, 2, 9, 9)', '(N, 3, H, W)')),
    'input in float64': (
        lambda: small()(torch.randn(1, 3, 32, 32).double()), ValueError, ('images', 'torch.float64', 'torch.float32')),
    'input on another device': (
        lambda: small()(torch.empty(1, 3, 32, 32, device='meta')), ValueError, ('images', 'meta', 'cpu')),
    'verify with other outputs': (
        lambda: verify(small(), small(num_classes=5), (3, 32, 32), 1), RuntimeError, ('candidate', '(1, 5)', '(1, 4)')),
    'verify with a bad size': (
        lambda: verify(small(), small(), (3, 32)), ValueError, ('input_size', '(3, 32)', '(C, H, W)')),
    'verify with no inputs': (lambda: verify(small(), small(), num_inputs=0), ValueError, ('num_inputs', '0', '1')),
    'export with batch 0': (
        lambda: export_onnx(small(), 'x.onnx', batch=0), ValueError, ('batch', '0', "'dynamic'")),
    'export with a bad size': (
        lambda: export_onnx(small(), 'x.onnx', (3, 0, 5)), ValueError, ('input_size', '(3, 0, 5)', '(C, H, W)')),
    'export into no folder': (
        lambda: export_onnx(finish_pruning(small()).eval(), 'no/such/x.onnx', (3, 32, 32)), OSError,
        ('folder', 'no')),
    'save into no folder': (
        lambda: save_checkpoint({'w': torch.zeros(1)}, 'no/such/x.pth'), OSError, ('folder', 'no/such')),
    'save onto a folder': (lambda: save_checkpoint({'w': torch.zeros(1)}, '.'), OSError, ('folder', '.')),
    'save what is no tensor': (
        lambda: save_checkpoint({'w': [1]}, 'x.pth'), TypeError, ("'w'", 'list', 'tensors')),
    'checkpoint without tensors': (
        lambda: find_state_dict(dict(epoch=3)), RuntimeError, ('keys', 'epoch', 'state_dict')),
    'override of no field': (
        lambda: import_official('x.pth', depth=3), (ValueError, RuntimeError), ('file', 'x.pth')),
    'keys of nobody': (
        lambda: convert_keys({'w': torch.zeros(1)}, 'timm'), ValueError, ('keys', 'w', 'cnv2 import-official')),
    'keys to nowhere': (lambda: convert_keys({}, 'keras'), ValueError, ('to', "'keras'", "'timm'", "'mmpretrain'")),
    'SFR start of a dense net': (
        lambda: init_from_shufflenet(small(), {}), ValueError, ('model', 'CondenseNet', 'SFR-ShuffleNetV2')),
    'map of a linear layer': (
        lambda: connection_map(nn.Linear(2, 2), 'lgc'), ValueError, ('model', 'Linear', 'CondenseNetV2')),
    'sparsity of a linear layer': (
        lambda: sparsity_report(nn.Linear(2, 2)), ValueError, ('Linear', 'group-sparse', 'no')),
    'benchmark of an unknown form': (
        lambda: benchmark({'m': small()}, forms=('fast',)), ValueError, ('form', 'fast', 'condensed', 'native')),
    'benchmark with no rounds': (lambda: interleave({'m': lambda: None}, 0), ValueError, ('rounds', '0', '1')),
    'pretrained without an address': (
        lambda: timm.create_model('condensenetv2_a', pretrained=True), RuntimeError,
        ('condensenetv2_a', '', 'cnv2 import-official', 'pretrained_cfg_overlay')),
}  # fmt: skip


@pytest.mark.parametrize('name', API)
def test_wrong_uses_give_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use, kind, expected = API[name]
    with pytest.raises(kind) as caught:
        use()
    message = str(caught.value)
    if 'Error(s) in loading state_dict' in message:
        lines = (line.strip() for line in message.splitlines()[1:])
        message = next(line for line in lines if all(names(line, piece) for piece in expected))
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

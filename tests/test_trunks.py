"""Trunks by themselves: their initial weights, and what condensing tells them."""

import copy

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.archs import CondenseNetArch, ShuffleNetArch
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import LearnedGroupConv
from cnv2_plugin.models import CondenseNetTrunk, ShuffleNetTrunk
from tests.helpers import finish_pruning


@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenet_50_cifar', 'sfr_shufflenetv2_x0_5'])
def test_convolutions_start_with_the_variance_that_keeps_gradients(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    told = 0
    trunk = [
        m for n, m in model.named_modules() if n.startswith(('stem', 'stages', 'final')) and isinstance(m, nn.Conv2d)
    ]
    for conv in trunk:
        outputs = conv.out_channels * conv.weight[0, 0].numel()
        inputs = conv.weight[0].numel()
        if conv.weight.numel() >= 2000:
            assert conv.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.1)
            assert abs(conv.weight.mean().item()) < 0.1 * (2 / outputs) ** 0.5
            told += not 0.7 < inputs / outputs < 1.4
    assert told  # where inputs and outputs are as many, both ways of counting agree


@pytest.mark.parametrize('trunk', [
    lambda: CondenseNetTrunk(CondenseNetArch(layers=(1, 1), growth=(8, 8), groups_1x1=4, groups_3x3=4)),
    lambda: ShuffleNetTrunk(ShuffleNetArch(channels=(16, 32), repeats=(1, 1), stem_width=8)),
])  # fmt: skip
def test_a_trunk_takes_images_of_three_channels_unless_told(trunk):
    assert trunk().stem(torch.randn(1, 3, 32, 32)).ndim == 4


def test_a_class_that_was_changed_is_noticed_where_it_computes_something_else(monkeypatch):
    """A library that puts another ``forward`` on the class leaves no trace at the layer: it is tried."""
    model = finish_pruning(timm.create_model('condensenet_50_cifar', num_classes=3)).eval()
    original, scaled = LearnedGroupConv.forward, 1.01

    def changed(layer, x):
        return original(layer, x) * (1 if layer.deploy else scaled)

    monkeypatch.setattr(LearnedGroupConv, 'forward', changed)
    with pytest.raises(TypeError, match=r'stages\.0\.layers\.0\.conv_1'):
        condense(model)
    scaled = 1
    assert condense(model).deploy


@pytest.mark.parametrize('enable', [False, True])
def test_layers_run_twice_only_where_checkpoints_were_asked_for(enable):
    model, calls = timm.create_model('condensenet_50_cifar', num_classes=3).train(), []
    model.set_grad_checkpointing(enable)
    model.stages[1].layers[0].register_forward_pre_hook(lambda layer, given: calls.append(layer))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 1 + enable


@pytest.mark.parametrize('name', ['condensenet_50_cifar', 'sfr_shufflenetv2_x0_5'])
def test_a_condensed_trunk_says_that_it_is(name):
    model = finish_pruning(timm.create_model(name, num_classes=3)).eval()
    whole = nn.Sequential(copy.deepcopy(model), nn.Softmax(1))
    assert not model.deploy and condense(whole)[0].deploy and not whole[0].deploy
    model.switch_to_deploy()
    assert model.deploy


class Told(nn.Module):
    """Wants to be told, and sees then that its layer is condensed."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = LearnedGroupConv(8, 8, 2, 1), []

    def on_condense(self):
        self.seen.append(self.layer.deploy)


def test_whoever_wants_to_be_told_of_condensing_is_told_once_it_is_done():
    model = nn.ModuleDict(dict(inner=Told()))
    assert condense(model)['inner'].seen == [True] and model['inner'].seen == []
    condense(model, inplace=True)
    assert model['inner'].seen == [True]


@pytest.mark.parametrize('built', ['condense', 'deploy=True'])
def test_the_condensed_form_has_no_convolution_of_our_own_type(built):
    model = timm.create_model('condensenetv2_a', num_classes=3, deploy=built != 'condense')
    model = condense(finish_pruning(model)) if built == 'condense' else model
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {nn.Conv2d}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['condensenet_50_cifar', 'sfr_shufflenetv2_x0_5'])
def test_counters_of_others_count_the_condensed_form_as_ours_does(name):
    torchinfo, thop = pytest.importorskip('torchinfo'), pytest.importorskip('thop')
    model, x = condense(finish_pruning(timm.create_model(name, num_classes=5)).eval()), torch.randn(1, 3, 32, 32)
    ours = count_cost(model, (3, 32, 32)).mult_adds
    assert torchinfo.summary(copy.deepcopy(model), input_data=x, verbose=0).total_mult_adds == pytest.approx(ours, 0.02)
    kinds = {nn.BatchNorm2d: thop.vision.basic_hooks.zero_ops}
    assert thop.profile(copy.deepcopy(model), (x,), kinds, verbose=False)[0] == pytest.approx(ours, 0.02)


@pytest.mark.filterwarnings('ignore')
def test_torchinfo_counts_the_masked_form():
    torchinfo, x = pytest.importorskip('torchinfo'), torch.randn(1, 3, 32, 32)
    model = timm.create_model('condensenet_50_cifar').eval()
    told = torchinfo.summary(copy.deepcopy(model), input_data=x, verbose=0).total_mult_adds
    assert told == pytest.approx(count_cost(model, (3, 32, 32)).mult_adds, 0.02)

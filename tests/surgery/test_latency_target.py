"""Surgery that pays: layers chosen by what they save, networks left alone that would not get faster."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import RuntimeLatency, condense
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import LayerPlan, ReactivationPlan, add_reactivation, plan_learned_groups, to_learned_groups
from tests.helpers import finish_pruning, installed

SIZE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))

    def forward(self, x):
        return x + self.body(x)


def network() -> nn.Sequential:
    """Six convolutions that can learn groups, two of 64, two of 128 and two of 256 hidden channels."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 64, 3, padding=1)
    return nn.Sequential(stem, *(Residual(64, hidden) for hidden in (64, 128, 256)), nn.Conv2d(64, 8, 1)).eval()


class Told:
    """A latency model that knows what each layer takes, and of networks that they are the sum of that.

    Args:
        layers: milliseconds by name, dense and condensed; None where unknown.
        realised: share of the layers' savings that a network keeps.
        added: milliseconds of each reactivation, by channels of the later features.
    """

    runtime = 'told'

    def __init__(self, layers, realised=1.0, added=None):
        self.told, self.realised, self.added, self.asked = layers, realised, added or {}, 0

    def layers(self, layers):
        return [self.told.get(layer.name) for layer in layers]

    def reactivations(self, layers):
        return [self.added[layer.name] for layer in layers]

    def networks(self, models, input_size):
        assert input_size == SIZE
        self.asked += 1
        return [self._network(model) for model in models]

    def _network(self, model):
        learned = {n for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d) and m.is_finished()}
        saved = sum(dense - condensed for name, (dense, condensed) in self.told.items() if name in learned)
        return 10 - saved * self.realised + sum(cost for name, cost in self.added.items() if name in learned)


PAYS = {
    '1.body.0': (1.0, 1.5), '1.body.2': (1.0, 0.99), '2.body.0': (2.0, 1.5),
    '2.body.2': (2.0, 1.0), '3.body.0': (3.0, 1.0), '3.body.2': (1.0, 0.7),
}  # fmt: skip
"""Savings of 2, 1, 0.5 and 0.3 ms of 10; one layer gets slower, one faster by less than noise."""


@pytest.mark.parametrize(
    ('at_most', 'chosen', 'share'),
    [
        (None, {'3.body.0', '2.body.2', '2.body.0', '3.body.2'}, 0.62),
        (0.8, {'3.body.0'}, 0.8),
        (0.79, {'3.body.0', '2.body.2'}, 0.7),
        (0.65, {'3.body.0', '2.body.2', '2.body.0'}, 0.65),
    ],
)
def test_layers_that_save_most_are_chosen_until_the_network_is_fast_enough(at_most, chosen, share):
    model = network()
    report = to_learned_groups(model, input_size=SIZE, target='latency', at_most=at_most, latency=Told(PAYS))
    learned = {name for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d)}
    assert learned == {layer.name for layer in report.layers} == chosen
    assert report.share == pytest.approx(share) and report.reached
    assert (report.latency.before, report.latency.after) == (10, pytest.approx(10 * share))
    assert {(layer.latency_before, layer.latency_after) for layer in report.layers} == {PAYS[n] for n in chosen}
    assert count_cost(model, SIZE).mult_adds_pruned == report.mult_adds_after
    text = str(report)
    assert f'In told 10.000 ms become {10 * share:.3f} ms ({share:.2f} of the latency)' in text
    assert 'not faster condensed in told (0.99 to 1.50 of their latency): 1.body.0, 1.body.2' in text
    assert ('not needed' in text) == (len(chosen) < 4)


def test_more_layers_are_taken_where_the_network_gains_less_than_its_layers():
    latency = Told(PAYS, realised=0.5)
    report = plan_learned_groups(network(), input_size=SIZE, target='latency', at_most=0.86, latency=latency)
    assert {layer.name for layer in report.layers} == {'3.body.0', '2.body.2'}
    assert report.share == pytest.approx(0.85) and report.reached and latency.asked == 3


def test_what_cannot_be_reached_is_said_and_everything_that_saves_is_taken():
    report = plan_learned_groups(network(), input_size=SIZE, target='latency', at_most=0.5, latency=Told(PAYS))
    assert len(report.layers) == 4 and not report.reached
    assert 'At most 0.50 was asked for; 0.62 is what these layers can reach.' in str(report)
    report = plan_learned_groups(network(), input_size=SIZE, at_most=0.1)
    assert len(report.layers) == 6 and not report.reached
    assert f'At most 0.10 was asked for; {report.share:.2f} is what' in str(report)


@pytest.mark.parametrize(
    ('told', 'realised', 'sentence'),
    [
        ({name: (1.0, 1.2) for name in PAYS}, 1, 'in told it takes 10.000 ms, and no convolution gets faster.'),
        (PAYS, -0.5, 'takes 10.000 ms, and would take 11.900 ms (1.19) with 4 convolutions condensed.'),
        ({}, 1, 'and no convolution gets faster'),
    ],
)
def test_a_network_that_would_not_get_faster_is_left_alone(told, realised, sentence):
    model = network()
    before = deepcopy(model.state_dict())
    report = to_learned_groups(model, input_size=SIZE, target='latency', at_most=0.8, latency=Told(told, realised))
    assert report.layers == () and report.mult_adds_after == report.mult_adds_before
    assert not any(isinstance(m, GroupSparseConv2d) for m in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert sentence in str(report) and 'The network is left alone' in str(report)
    assert report.latency.share == 1 and not report.reached
    if not told:
        assert '6 stay, not measured in told' in str(report)


@pytest.mark.parametrize('at_most', [0.9, 0.7, 0.6])
def test_multiply_adds_come_down_to_the_share_with_as_few_layers_as_possible(at_most):
    model = network()
    every = plan_learned_groups(model, input_size=SIZE)
    report = to_learned_groups(model, input_size=SIZE, at_most=at_most)
    assert report.reached and report.share <= at_most
    savings = sorted((p.mult_adds_before - p.mult_adds_after for p in every.layers), reverse=True)
    assert every.mult_adds_before - sum(savings[: len(report.layers) - 1]) > at_most * every.mult_adds_before
    assert count_cost(condense(finish_pruning(model)), SIZE).mult_adds == report.mult_adds_after


def test_reactivation_takes_the_cheapest_that_the_network_may_cost():
    added = {f'{i}.reactivation_0': cost for i, cost in ((1, 0.6), (2, 0.1), (3, 0.2))}
    model = network()
    report = add_reactivation(model, 4, 4, input_size=SIZE, target='latency', at_most=1.03, latency=Told({}, 1, added))
    assert [plan.name for plan in report.layers] == ['2.reactivation_0', '3.reactivation_0']
    assert report.left_out == ('1.reactivation_0',)
    assert 'In told 10.000 ms become 10.300 ms, 1.03 of the dense network.' in str(report)
    assert {n for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d)} == {p.name for p in report.layers}
    assert count_cost(model, SIZE).mult_adds_pruned == report.mult_adds_after

    model = network()
    to_learned_groups(model, input_size=SIZE, target='latency', at_most=0.8, latency=Told(PAYS))
    report = add_reactivation(
        model, 4, 4, input_size=SIZE, target='latency', at_most=0.82, latency=Told(PAYS, 1, added)
    )
    assert [plan.name for plan in report.layers] == ['2.reactivation_0']
    assert (report.latency.dense, report.latency.before) == (10, 8) and report.latency.after == pytest.approx(8.1)

    model = network()
    state = model.state_dict().keys()
    report = add_reactivation(model, 4, 4, input_size=SIZE, target='latency', at_most=1.0, latency=Told({}, 1, added))
    assert report.layers == () and len(report.left_out) == 3 and model.state_dict().keys() == state
    assert '3 are left out, which would take the network beyond 1.00 of the dense one' in str(report)


def test_reactivation_by_multiply_adds_counts_learned_groups_as_pruned():
    model = network()
    with pytest.raises(ValueError, match='at_most is 0'):
        add_reactivation(model, 4, 4, input_size=SIZE, at_most=0)
    dense = to_learned_groups(model, input_size=SIZE, at_most=0.7).mult_adds_before
    before = count_cost(model, SIZE).mult_adds_pruned
    every = add_reactivation(deepcopy(model), 4, 4, input_size=SIZE)
    assert len(every.layers) == 3
    limit = (before + every.layers[0].mult_adds) / dense
    report = add_reactivation(model, 4, 4, input_size=SIZE, at_most=limit)
    assert len(report.layers) == 1
    assert before < count_cost(model, SIZE).mult_adds_pruned <= limit * dense


def test_bad_arguments_are_told_in_a_sentence():
    for arguments, message in (
        (dict(target='latency'), r"give latency=RuntimeLatency\('onnxruntime'\)"),
        (dict(target='speed'), "target is 'speed'; it takes 'multiply-adds' or 'latency'"),
        (dict(at_most=-1), 'at_most is -1; it takes a share'),
        (dict(at_most=True), 'at_most is True'),
    ):
        model = network()
        for operate in (to_learned_groups, plan_learned_groups, add_reactivation):
            with pytest.raises(ValueError, match=message):
                operate(model, 4, 4, input_size=SIZE, **arguments)
        assert not any(isinstance(m, GroupSparseConv2d) for m in model.modules())
    with pytest.raises(ValueError, match="onnxruntime and openvino, not in 'abacus'"):
        RuntimeLatency('abacus')
    with pytest.raises(ValueError, match='threads is 1 and rounds is 0'):
        RuntimeLatency(rounds=0)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_layers_are_measured_once_a_shape_and_within_the_budget(runtime):
    pytest.importorskip(runtime)
    shape = dict(groups=4, factor=4, mult_adds_before=64 * 64 * 64, mult_adds_after=16 * 64 * 64, input_size=(8, 8))
    plans = [LayerPlan('a', 64, 64, **shape), LayerPlan('b', 64, 64, **shape)]
    plans.append(LayerPlan('c', 64, 128, **{**shape, 'stride': (2, 2), 'mult_adds_before': 1}))
    told = []
    latency = RuntimeLatency(runtime, rounds=2, progress=told.append)
    first = latency.layers(plans)
    assert first[0] == first[1] and all(ms > 0 for pair in first for ms in pair)
    assert [text.partition(':')[0] for text in told] == ['a', 'c']
    assert latency.layers(plans) == first and len(told) == 2
    assert RuntimeLatency(runtime, budget=0).layers(plans) == [None] * 3
    added = latency.reactivations([ReactivationPlan('d', 'residual', 64, 32, 4, 4, 1, (8, 8))])
    assert added[0] >= 0


def test_the_whole_way_in_onnx_runtime():
    pytest.importorskip('onnxruntime')
    model = network().train()
    expected = deepcopy(model).eval()(images := torch.randn(1, *SIZE))
    report = to_learned_groups(model, input_size=SIZE, target='latency', latency=RuntimeLatency(rounds=2, budget=20))
    assert model.training and torch.allclose(model.eval()(images), expected)
    assert report.latency.runtime == 'onnxruntime' and report.latency.before > 0
    assert bool(report.layers) == (report.latency.after < report.latency.before)
    assert all(layer.latency_after < layer.latency_before for layer in report.layers)
    assert report.share == report.latency.after / report.latency.before


@pytest.mark.needs('onnx', 'onnxscript', 'onnxruntime')
def test_a_network_that_cannot_be_exported_is_told():
    """PyTorch before 2.6 traces one path of it, which is what is measured then (docs/stacks.md)."""

    class Odd(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum().item() < 1 else -x)

    odd = [Odd(*network()).eval()]
    if installed('torch<2.6'):
        assert RuntimeLatency(rounds=1).networks(odd, SIZE)[0] > 0
        return
    with pytest.raises(ValueError, match="Odd cannot be exported to be measured in onnxruntime .*'multiply-adds'"):
        RuntimeLatency(rounds=1).networks(odd, SIZE)

"""Surgery changes only what it knows: whatever else a module does survives, or it is left alone with its reason."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cnv2_plugin.deploy import condense
from cnv2_plugin.sparsify import add_reactivation, plan_learned_groups, to_learned_groups
from tests.deploy.test_known import CHANGES, FOREIGN, SIZE, finished
from tests.helpers import relative_difference

OPTIONS = dict(groups=4, factor=2, min_channels=8, input_size=SIZE)


def listener(module):
    """A hook that changes nothing but counts, such as those of feature extractors."""
    module.heard = []
    module.register_forward_hook(lambda module, inputs, output: module.heard.append(len(module.heard)) or None)


def heard(model, images):
    listening = [module for module in model.modules() if hasattr(module, 'heard')]
    for module in listening:
        module.heard.clear()
    with torch.no_grad():
        output = model(images)
    return output, [len(module.heard) for module in listening]


PLACED = dict(CHANGES, listener=listener)


def silently_wrong(model, position, change, images):
    """The kinds of surgery after which the network computes something else or a listener hears less."""
    PLACED[change](model.get_submodule(position))
    model.eval()
    expected, times = heard(model, images)
    for name, operate in (('groups', to_learned_groups), ('reactivation', add_reactivation)):
        operated = copy.deepcopy(model)
        try:
            operate(operated, **OPTIONS)
        except ValueError:  # nothing is left that could be changed, with all reasons
            continue
        output, again = heard(operated, images)
        if not relative_difference(output, expected) <= 1e-5 or again != times:
            yield f'{name}: {change} at {position or "the model"}'
        finished(operated)
        masked, _ = heard(operated, images)
        try:
            condensed = condense(operated)
        except (TypeError, ValueError) as refusal:
            if position not in str(refusal):
                yield f'{name}, condensed: {change} at {position} is refused without naming it: {refusal}'
            continue
        if not relative_difference(heard(condensed, images)[0], masked) <= 1e-5:
            yield f'{name}, condensed: {change} at {position or "the model"}'


def walk(name, share=1.0):
    torch.manual_seed(0)
    model, images = FOREIGN[name](), torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(1))
    places = [(position, change) for position, _ in model.named_modules() for change in PLACED]
    chosen = random.Random(1).sample(places, int(len(places) * share))
    wrong = [w for place in chosen for w in silently_wrong(copy.deepcopy(model), *place, images)]
    assert wrong == []


@pytest.mark.parametrize(('name', 'share'), [('resnet', 0.015), ('densenet', 0.03), ('own', 0.2)])
def test_changes_at_some_positions_survive_surgery_or_are_refused(name, share):
    walk(name, share)


@pytest.mark.slow
@pytest.mark.parametrize('name', FOREIGN)
def test_changes_at_every_position_survive_surgery_or_are_refused(name):
    walk(name)


class Plain(nn.Conv2d):
    """A subclass that computes what its base does."""

    def __init__(self, channels):
        super().__init__(channels, channels, 1)


@pytest.mark.parametrize('change', [*PLACED, 'parametrised', 'pruned'])
def test_a_layer_that_does_more_is_left_alone_with_its_reason(change):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), Plain(64), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 1)).eval()
    others = dict(
        parametrised=parametrizations.spectral_norm, pruned=lambda m: prune.random_unstructured(m, 'weight', 1)
    )
    dict(PLACED, **others)[change](model[2])
    report = plan_learned_groups(model, input_size=(3, 8, 8))
    assert [layer.name for layer in report.layers] == ['1']
    assert {layer.name: layer.reason for layer in report.skipped}['2']


@pytest.mark.parametrize('change', ['hook', 'instance_forward', 'listener'])
def test_reactivation_says_what_a_traced_forward_would_lose(change):
    model = FOREIGN['densenet']()
    PLACED[change](model.features.denseblock1.denselayer2 if change == 'instance_forward' else model.features)
    before = [type(module) for module in model.modules()]
    try:
        report = str(add_reactivation(model, **OPTIONS))
    except ValueError as refusal:
        report = str(refusal)
        assert [type(module) for module in model.modules()] == before
    assert 'remove that first' in report

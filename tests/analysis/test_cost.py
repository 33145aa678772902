"""Counts against the published figures, fvcore, and each other."""

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense
from tests.helpers import finish_pruning, random_arch, randomize_norms

EXPECTED = {
    'condensenetv2_a': (3_350_244, 2.04e6, 45.87e6),
    'condensenetv2_b': (6_311_412, 3.59e6, 146.47e6),
    'condensenetv2_c': (15_097_752, 6.18e6, 309.74e6),
}


@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_published_figures(name):
    params, pruned, counted = EXPECTED[name]
    cost = count_cost(timm.create_model(name, device='meta'))
    assert cost.params == params
    assert cost.params_pruned == pytest.approx(pruned, abs=5e3)
    assert cost.authors_count == pytest.approx(counted, abs=5e3)


@pytest.mark.parametrize('name', [*sorted(EXPECTED), 'sfr_shufflenetv2_x0_5', 'condensenet_86_cifar'])
def test_pruned_and_condensed_forms_agree_and_nothing_is_hidden(name):
    size = (3, 64, 64)
    training, condensed = (timm.create_model(name, deploy=deploy, device='meta') for deploy in (False, True))
    before, after = count_cost(training, size), count_cost(condensed, size)
    assert before.params_pruned == after.params == after.params_pruned
    assert before.mult_adds_pruned == after.mult_adds
    assert after.params == sum(p.numel() for p in condensed.parameters())
    assert after.buffers == sum(b.numel() for b in condensed.buffers())
    assert before.index_additions == 0


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('seed', range(4))
def test_condensed_form_against_fvcore(seed):
    model = timm.create_model('condensenetv2', arch=random_arch(seed), num_classes=5)
    condensed = condense(finish_pruning(randomize_norms(model))).eval()
    counted = pytest.importorskip('fvcore.nn').FlopCountAnalysis(condensed, torch.randn(1, 3, 32, 32))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = counted.by_operator()
    assert count_cost(condensed, (3, 32, 32)).mult_adds == by_operator['conv'] + by_operator['linear']


def test_index_additions_are_rows_times_positions():
    arch = dict(layers=[1], growth=[8], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=4, sparse_factor=5)
    cost = count_cost(timm.create_model('condensenetv2', arch=arch, deploy=True), (3, 16, 16))
    assert cost.index_additions == 4 * -(-16 // 5) * 8 * 8


def test_the_value_of_moving_a_model_is_not_used():
    class Detector(nn.Sequential):
        """As some of MMDetection's, it returns nothing."""

        def to(self, *args, **kwargs):
            super().to(*args, **kwargs)

        def train(self, mode=True):
            super().train(mode)

        def eval(self):
            super().train(False)

    layers = nn.Conv2d(3, 8, 3), nn.ReLU()
    assert count_cost(Detector(*layers), (3, 8, 8)) == count_cost(nn.Sequential(*layers), (3, 8, 8))

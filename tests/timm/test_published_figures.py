"""Counts of CondenseNet, ShuffleNetV2 and the CIFAR models against the published figures, and the table of all."""

import re

import pytest
import timm

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import condense

from ..helpers import finish_pruning

# training form, after pruning (M), authors' count (M), from the authors' own counter with the whole classifier
CONDENSENET = {
    'condensenet_74_g4': (11_922_680, 5.806, 530.36),
    'condensenet_74_g8': (11_103_608, 3.967, 275.27),
    'condensenet_50_cifar': (522_938, 0.217, 28.64),
    'condensenet_74_cifar': (1_090_906, 0.405, 51.90),
    'condensenet_86_cifar': (1_451_594, 0.520, 65.82),
    'condensenet_98_cifar': (1_863_418, 0.648, 81.26),
    'condensenet_110_cifar': (2_326_378, 0.790, 98.24),
    'condensenet_122_cifar': (2_840_474, 0.945, 116.74),
}
QUICK = ['condensenet_74_g4', 'condensenet_74_g8', 'condensenet_50_cifar', 'condensenet_86_cifar']
SHUFFLENET = {'x0_5': (1_366_792, 41), 'x1_0': (2_278_604, 146), 'x1_5': (3_503_624, 299), 'x2_0': (7_393_996, 591)}
CIFAR_V2 = {'condensenetv2_110_cifar': (0.32, 41.75), 'condensenetv2_146_cifar': (0.50, 63.40)}


def cost_of(name: str, **kwargs):
    model = timm.create_model(name, device='meta', **kwargs)
    return count_cost(model, VARIANTS[name].input_size, linear_bias=VARIANTS[name].family == 'CondenseNet')


@pytest.mark.parametrize('name', [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONDENSENET])
def test_condensenet(name):
    training, pruned, counted = CONDENSENET[name]
    cost = cost_of(name)
    assert cost.params == training
    assert cost.params_pruned / 1e6 == pytest.approx(pruned, abs=6e-4)
    assert cost.authors_count / 1e6 == pytest.approx(counted, abs=6e-3)


@pytest.mark.parametrize('name,params,counted', [('condensenet_74_g4', 4.8, 529), ('condensenet_74_g8', 2.9, 274)])
def test_published_condensenet_has_half_a_classifier(name, params, counted):
    model = condense(finish_pruning(timm.create_model(name)), classifier_keep=0.5)
    cost = count_cost(model, linear_bias=True)
    assert cost.params / 1e6 == pytest.approx(params, rel=0.02)
    assert cost.authors_count / 1e6 == pytest.approx(counted, rel=0.02)
    built = cost_of(name, deploy=True, classifier_keep=0.5)
    assert built == cost


@pytest.mark.parametrize('width', SHUFFLENET)
def test_shufflenet(width):
    params, published = SHUFFLENET[width]
    plain, sfr = cost_of(f'shufflenetv2_{width}'), cost_of(f'sfr_shufflenetv2_{width}')
    assert plain.params == plain.params_pruned == params
    assert plain.mult_adds / 1e6 == pytest.approx(published, rel=0.02)
    assert plain.authors_count / 1e6 == pytest.approx(published, rel=0.02)
    arch = VARIANTS[f'sfr_shufflenetv2_{width}'].arch
    halves = [(c // 2, (224 // 8 >> i) ** 2, n - 1) for i, (c, n) in enumerate(zip(arch.channels, arch.repeats))]
    added = sum(units * pixels * width * -(-width // 8) for width, pixels, units in halves)
    assert sfr.mult_adds_pruned - plain.mult_adds == added
    assert sfr.params_pruned - plain.params == sum(n * (w * -(-w // 8) + 2 * w) for w, _, n in halves)


@pytest.mark.parametrize('name', CIFAR_V2)
def test_cifar_reconstruction(name):
    params, counted = CIFAR_V2[name]
    cost = cost_of(name)
    assert cost.params_pruned / 1e6 == pytest.approx(params, abs=6e-3)
    assert cost.authors_count / 1e6 == pytest.approx(counted, abs=6e-3)
    assert cost.authors_count / 1e6 == pytest.approx(VARIANTS[name].published.mult_adds, rel=0.025)
    assert 'not public' in VARIANTS[name].published.note


@pytest.mark.slow
def test_table_of_all_explains_what_differs(capsys):
    assert main(['cost', '--all', '--markdown']) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    rows = {cells[0]: cells for cells in ([c.strip() for c in line.strip('|').split('|')] for line in lines[2:])}
    assert list(rows) == list(VARIANTS)
    for name, cells in rows.items():
        published = VARIANTS[name].published
        if published is None:
            assert cells[2] == cells[5] == '-'
            continue
        assert (float(cells[2]), float(cells[5])) == (published.params, published.mult_adds)
        for ours, theirs, percent in (cells[1:4], cells[4:7]):
            off = 100 * (float(ours) / float(theirs) - 1)
            shown = float(re.fullmatch(r'([+-][\d.]+) %', percent)[1])
            assert shown == pytest.approx(off, abs=0.35)
            assert abs(shown) <= 2 or cells[8], f'{name} is {percent} off and does not say why'

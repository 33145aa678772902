"""The comparison of dense, pruned and reactivated networks, at its smallest."""

import json
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip('matplotlib')
pytest.importorskip('sklearn')

from tools.research import surgery_run as surgery
from tools.research import surgery_runs as compare_surgery
from tools.research.arms import ARMS, INPUT_SIZE, Options
from tools.research.data import batches, load
from tools.research.results_file import read_rows
from tools.research.runs import Place
from tools.research.train import random_masks, sparse_layers

SMALLEST = (
    '--epochs', '1', '--train-images', '64', '--test-images', '32', '--batch-size', '8', '--seeds', '0',
    '--rounds', '1', '--blocks', '1',
)  # fmt: skip


def folders(tmp_path):
    return ['--results', str(tmp_path / 'results.csv'), '--out', str(tmp_path / 'out')]


@pytest.fixture
def tool():
    pytest.importorskip('sklearn')
    return compare_surgery


@pytest.mark.slow
def test_writes_table_figures_and_picture_and_trains_only_once(tool, tmp_path, capsys, monkeypatch):
    arguments = [*SMALLEST, '--datasets', 'digits', *folders(tmp_path)]
    assert tool.main(arguments) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / 'out' / 'table.md').read_text()
    assert table.count('| digits |') == 3 and '64 training and 32 test images' in table
    assert (tmp_path / 'out' / 'accuracy.png').stat().st_size > 5_000
    figures = json.loads((tmp_path / 'out' / 'figures.json').read_text())
    arms = figures['datasets']['digits']['arms']
    dense, groups, reactivation = (arms[name]['mult_adds'] for name in ('dense', 'groups', 'reactivation'))
    assert groups < reactivation < dense
    assert figures['datasets']['digits']['steps'] == 8
    for arm in arms.values():
        assert len(arm['accuracy']) == 1 and arm['condensed_difference'] < 1e-5
        assert all(row['timing']['rounds'] == 1 and row['runtime'] == 'onnxruntime' for row in arm['latency'].values())
    assert set(arms['groups']['latency']) == {'condensed', 'lowered'}

    monkeypatch.setattr(surgery, 'fit', None)
    assert tool.main(arguments) == 0
    again = json.loads((tmp_path / 'out' / 'figures.json').read_text())['datasets']['digits']['arms']
    (kept,) = (row for row in read_rows(tmp_path / 'results.csv') if row['name'].startswith('dense'))
    assert kept['command'].startswith('python tools/research/compare_surgery.py --epochs 1')
    assert {arm: values['accuracy'] for arm, values in again.items()} == {
        arm: values['accuracy'] for arm, values in arms.items()
    }
    assert not [*tmp_path.rglob('.*')]


def test_every_arm_sees_the_same_batches():
    args = compare_surgery.arguments().parse_args([*SMALLEST, '--datasets', 'digits'])
    start, arms = compare_surgery.runs('digits', args)
    recipes = {repr(run.recipe) for run in arms.values()}
    assert len(recipes) == 1
    recipe = next(iter(arms.values())).recipe
    data = load('digits')
    first, second = (
        [*batches(data, recipe.batch_size, recipe.shift, recipe.flip, torch.Generator().manual_seed(3))]
        for _ in range(2)
    )
    assert len(first) > 1
    assert all((a == b).all() and (c == d).all() for (a, c), (b, d) in zip(first, second))


@pytest.mark.slow
def test_our_recipe_prunes_early_and_the_dense_arm_teaches(tool, tmp_path, capsys):
    arguments = [*SMALLEST, '--datasets', 'digits', '--arms', 'groups', 'reactivation']
    _, papers = compare_surgery.runs('digits', compare_surgery.arguments().parse_args(arguments))
    arguments += [*folders(tmp_path), '--recipe', 'ours']
    _, ours = compare_surgery.runs('digits', compare_surgery.arguments().parse_args(arguments))
    assert list(ours) == ['dense', 'dense-ours', 'groups-ours', 'reactivation-ours']
    assert ours['dense'] == papers['dense'] and ours['groups-ours'].name != papers['groups'].name
    assert len({repr(run.recipe) for arm, run in ours.items() if arm != 'dense'}) == 1
    for arm in ('dense-ours', 'groups-ours', 'reactivation-ours'):
        assert ours[arm].teacher == ours['dense'] and ours[arm].recipe.distill == 1
        assert ours[arm].recipe.sparsifier == {'sparse_fraction': 0.25} and ours[arm].recipe.rewind == 1
    _, both = compare_surgery.runs('digits', compare_surgery.arguments().parse_args([*arguments, 'papers']))
    assert both == {**papers, **ours}
    assert tool.main([*arguments, '--epochs', '3']) == 0
    table = capsys.readouterr().out
    assert table.count('| digits |') == 4 and table.count(', our recipe |') == 3 and '| dense |' in table


def test_every_arm_starts_from_the_same_weights_and_is_told_by_its_settings(tmp_path):
    args = compare_surgery.arguments().parse_args([*SMALLEST, '--datasets', 'digits'])
    start, arms = compare_surgery.runs('digits', args)
    place = Place(tmp_path / 'results.csv', tmp_path)
    images = torch.randn(2, *INPUT_SIZE)
    before = start.trained(0, place)(images)
    for run in arms.values():
        assert run.start == start and run.settings()['start'] == start.settings()
        model = run.start.trained(0, place)
        run.operate(model)
        assert torch.equal(model(images), before)
    other, _ = compare_surgery.runs('digits', compare_surgery.arguments().parse_args([*SMALLEST, '--growth', '8']))
    assert other.name != start.name
    for path in (tmp_path / f'{start.name}_seed0').iterdir():
        path.unlink()
    assert torch.equal(start.trained(0, place)(images), before)


def test_random_groups_take_the_layers_of_learned_ones(tmp_path):
    args = compare_surgery.arguments().parse_args([*SMALLEST, '--arms', 'groups', 'random', '--recipe', 'ours'])
    _, arms = compare_surgery.runs('digits', args)
    assert list(arms) == ['dense', 'dense-ours', 'groups-ours', 'random-ours']
    models = [arms[f'{name}-ours'].untrained() for name in ('groups', 'random')]
    assert sparse_layers(models[0]).keys() == sparse_layers(models[1]).keys() and sparse_layers(models[0])
    place = Place(tmp_path / 'results.csv', tmp_path)
    kept = surgery.unit_masks(arms['random-ours'].trained(0, place))
    expected = random_masks(sparse_layers(models[1]), 0)
    assert all(torch.equal(kept[name], mask) for name, mask in expected.items())


def test_a_network_that_is_left_alone_stays_dense():
    options = Options(blocks=(1,), layers=())
    model = options.build()
    before = ARMS['dense'].operate(model, options)
    assert ARMS['latency'].operate(model, options) == ARMS['random'].operate(model, options) == before
    assert not sparse_layers(model)


def test_bad_input_is_told_in_a_sentence(tool, tmp_path, capsys):
    arguments = [*SMALLEST, *folders(tmp_path), '--fashion-mnist', str(tmp_path), '--datasets', 'fashion-mnist']
    assert tool.main(arguments) == 1
    assert 'lay it with tools/prepare_fashion_mnist.py' in capsys.readouterr().err
    arguments = [*SMALLEST, *folders(tmp_path), '--datasets', 'digits', '--batch-size', '100']
    assert tool.main(arguments) == 1
    assert 'do not fill a batch of 100' in capsys.readouterr().err
    assert not [*tmp_path.rglob('table.md')]


class Told:
    """A latency model by which the second and the fourth layer get faster, and the network too."""

    runtime = 'told'

    def __init__(self, **options):
        pass

    def layers(self, layers):
        return [(1.0, 0.5 if i in (1, 3) else 2.0) for i in range(len(layers))]

    def networks(self, models, input_size):
        return [10.0 - (number > 0) for number in range(len(models))]


def test_layers_chosen_by_latency_are_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_surgery, 'RuntimeLatency', Told)
    arguments = [*SMALLEST, *folders(tmp_path), '--arms', 'channels', 'random', 'latency']
    arguments += ['--network', 'mobilenetv2_100']
    args = compare_surgery.arguments().parse_args(arguments)
    _, arms = compare_surgery.runs('digits', args)
    assert list(arms) == ['dense', 'latency', 'random', 'channels']
    assert len(arms['latency'].options.layers) == 2
    assert arms['random'] == replace(
        arms['latency'], arm='random', recipe=replace(arms['latency'].recipe, masks='random')
    )
    model = arms['latency'].options.build()
    assert arms['latency'].operate(model) == arms['channels'].options.mult_adds
    assert set(surgery.unit_masks(model)) == set(arms['latency'].options.layers)
    monkeypatch.setattr(compare_surgery, 'RuntimeLatency', None)
    assert compare_surgery.runs('digits', args)[1] == arms
    (found,) = read_rows(tmp_path / 'results_faster_layers.csv')
    assert 'In told 10.000 ms become 9.000 ms (0.90 of the latency).' in found['report']
    assert [layer['latency_after'] for layer in found['timings']] == [0.5, 0.5]


@pytest.mark.slow
def test_dense_chosen_groups_and_fewer_channels_from_end_to_end(tool, tmp_path, capsys, monkeypatch):
    pytest.importorskip('torch_pruning')
    monkeypatch.setattr(compare_surgery, 'RuntimeLatency', Told)
    blocks = SMALLEST[: SMALLEST.index('--blocks')]
    arguments = [*blocks, '--blocks', '2', '--datasets', 'digits', '--arms', 'latency', 'random', 'channels']
    recipes = ['--recipe', 'papers', 'ours', '--epochs', '3']
    assert tool.main([*arguments, *recipes, *folders(tmp_path)]) == 0
    assert capsys.readouterr().out.count('| digits |') == 8
    arms = json.loads((tmp_path / 'out' / 'figures.json').read_text())['datasets']['digits']['arms']
    names = ['dense', 'latency', 'random', 'channels']
    assert list(arms) == [*names, *(f'{name}-ours' for name in names)]
    for arm in names:
        assert arms[arm]['mult_adds'] == arms[f'{arm}-ours']['mult_adds']
    assert arms['channels']['mult_adds'] <= arms['latency']['mult_adds'] < arms['dense']['mult_adds']
    assert arms['random']['mult_adds'] == arms['latency']['mult_adds']
    assert set(arms['latency']['latency']) == set(arms['random']['latency']) == {'condensed', 'lowered'}
    assert set(arms['channels']['latency']) == {'as published'}


@pytest.mark.parametrize('network', ['densenet', pytest.param('resnet26', marks=pytest.mark.slow)])
def test_channels_come_down_to_the_multiply_adds(network):
    pytest.importorskip('torch_pruning')
    options = Options(blocks=(1,), network=network)
    dense = options.build()
    before = ARMS['dense'].operate(dense, options)
    wanted = replace(options, mult_adds=int(0.7 * before))
    after = ARMS['channels'].operate(dense, wanted)
    assert 0.5 * before < after <= 0.7 * before
    assert dense(torch.randn(2, *INPUT_SIZE)).shape == (2, 10)
    again = wanted.build()
    ARMS['channels'].operate(again, wanted)
    again.load_state_dict(dense.state_dict())


def test_channel_pruning_says_what_it_takes(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch_pruning', None)
    options = Options(blocks=(1,), mult_adds=1)
    with pytest.raises(ImportError, match='pip install torch-pruning'):
        ARMS['channels'].operate(options.build(), options)

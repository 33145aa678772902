"""Runs at their smallest: trained once, resumed exactly, told by their settings, tabulated."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cnv2_plugin.layers import SparseFeatureReactivation
from tools.research import runs, suites, train
from tools.research import runs_table as compare
from tools.research.data import augmented, batches, load
from tools.research.networks import NETWORKS
from tools.research.recipe import Recipe
from tools.research.results_file import read_rows
from tools.research.runs import BusyError, NetworkRun, Place, complete, finished

pytest.importorskip('timm')
pytest.importorskip('sklearn')

RESULTS = Path(__file__).parents[2] / 'tools/research/results/fashion_mnist.csv'


def smallest(run, network=None):
    """The same comparison with little of everything, on digits; as many steps as the stages need."""
    batch_size = 4 if run.recipe.sparsifier.get('sparse_fraction', 0.5) < 0.2 else 8
    return replace(
        run, images='digits', train_images=64, test_images=32, network=network or run.network,
        recipe=replace(run.recipe, epochs=2, batch_size=batch_size),
        masks_of=run.masks_of and smallest(run.masks_of, network),
        teacher=run.teacher and smallest(run.teacher, network),
    )  # fmt: skip


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / 'results.csv', tmp_path / 'work', command='python tools/research/compare_runs.py')


def test_pruning_suite_from_end_to_end(place, monkeypatch, capsys):
    small = [smallest(run, 'condensenetv2-xs') for run in suites.pruning('s')]
    assert runs.complete_all([(run, 0) for run in small], place) == []
    found = {run.name: finished(run, 0, place) for run in small}
    never, papers, scratch, random = (found[run.name] for run in small[:1] + small[1:2] + small[-2:])
    assert never['mult_adds'] == papers['mult_adds_unpruned'] > papers['mult_adds'] == scratch['mult_adds']
    assert scratch['masks'] == papers['masks'] != random['masks']
    for figures in found.values():
        assert len(figures['history']['accuracy']) == 2 and figures['seconds'] > 0
        assert figures.get('accuracy_condensed', figures['accuracy']) == figures['accuracy']
        assert figures['machine']['cores'] and figures['command'] == place.command
        assert len(json.dumps(figures)) < 20_000

    monkeypatch.setitem(suites.SUITES, 'pruning-s', lambda: small)
    monkeypatch.setattr(runs, 'fit', None)
    assert compare.main(['pruning-s', '--seeds', '0', '1', '--table', '--results', str(place.results)]) == 0
    table = capsys.readouterr().out
    assert table.count('\n') == 2 + len(small) and '(1)' in table and 'never pruned' in table
    assert compare.main(['pruning-s', '--seeds', '0', '--results', str(place.results)]) == 0


@pytest.mark.parametrize('name', [run.network for size in 'sl' for run in suites.headline(size)])
def test_headline_networks_have_equal_multiply_adds_and_train(name):
    mult_adds = dict(s=1.13e6, l=4.97e6)[name[-1]]
    cost = runs.NetworkRun(name, name, Recipe()).cost()
    assert cost['mult_adds'] == pytest.approx(mult_adds, rel=0.02)
    if name.endswith('-s'):
        data = load('digits', 24, 16)
        (row,) = train.fit(NETWORKS[name].build(), data, Recipe(epochs=1, batch_size=4), 0)
        assert row['loss'] > 0


OURS = dict(sparsifier=dict(sparse_fraction=0.6, start=0.1), rewind=1.0, recalibrate=2)


def reactivations(model):
    return [module for module in model.modules() if isinstance(module, SparseFeatureReactivation)]


@pytest.mark.parametrize('name', ['condensenetv2-s', 'sfr-shufflenetv2-s'])
def test_networks_named_zero_start_without_reactivation(name):
    zero, papers = (reactivations(NETWORKS[network].build()) for network in (f'{name}-zero', name))
    assert papers and len(zero) == len(papers)
    assert not any(layer.conv.weight.any() for layer in zero)
    assert all(layer.conv.weight.any() for layer in papers)


def test_every_kept_result_is_of_a_run_with_its_settings():
    place = Place(RESULTS, RESULTS)
    seeded = [(run, seed) for suite in suites.SUITES.values() for run in suite() for seed in range(3)]
    kept = {(run.name, seed) for run, seed in seeded if finished(run, seed, place)}
    assert kept and kept == {(row['name'], row['seed']) for row in read_rows(RESULTS)}


@pytest.mark.parametrize(('stop', 'options'), [(1, {}), (2, {}), (3, {}), (1, OURS), (3, OURS)])
def test_a_stopped_training_ends_as_one_that_was_not(stop, options, tmp_path, monkeypatch):
    data = load('digits', 64, 32)
    recipe = Recipe(epochs=4, batch_size=8, **options)

    def build():
        torch.manual_seed(0)
        return NETWORKS['condensenetv2-xs'].build()

    whole, stopped = build(), build()
    history = train.fit(whole, data, recipe, 0)
    first = train.Training(stopped, data, recipe, 0)
    for epoch in range(stop):
        first.run_epoch(epoch)
    torch.save(first.state(), tmp_path / 'checkpoint.pth')
    again = build()
    resumed = train.fit(again, data, recipe, 0, tmp_path / 'checkpoint.pth')
    assert [(r['loss'], r['accuracy']) for r in resumed] == [(r['loss'], r['accuracy']) for r in history]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    with pytest.raises(ValueError, match='another recipe or seed'):
        train.fit(build(), data, replace(recipe, rate=0.2), 0, tmp_path / 'checkpoint.pth')


def test_settings_tell_runs_apart(place):
    run = smallest(NetworkRun('one', 'shufflenetv2-s', Recipe()))
    complete(run, 0, place)
    assert finished(run, 1, place) is None
    with pytest.raises(ValueError, match='other settings'):
        complete(replace(run, recipe=replace(run.recipe, rate=0.2)), 0, place)


def test_a_run_that_another_process_holds_is_passed_over(place, capsys):
    pytest.importorskip('fcntl')
    run = smallest(NetworkRun('one', 'shufflenetv2-s', Recipe()))
    folder = place.work / 'one_seed0'
    folder.mkdir(parents=True)
    with runs.held(folder), pytest.raises(BusyError, match='another process'):
        complete(run, 0, place)
    with runs.held(folder):
        assert runs.complete_all([(run, 0)], place) == [(run, 0)]
    assert 'passed over' in capsys.readouterr().err


def test_masks_survive_as_text():
    masks = {'a': torch.rand(3, 13) > 0.5, 'b': torch.rand(4, 8) > 0.5}
    again = runs.decoded_masks(json.loads(json.dumps(runs.encoded_masks(masks))))
    assert all(torch.equal(masks[name], again[name]) for name in masks)


def test_batches_depend_on_the_generator_alone():
    data = load('digits', 40, 8)
    first, second = ([*batches(data, 8, 2, True, torch.Generator().manual_seed(3))] for _ in range(2))
    assert len(first) == 5 and all((a == b).all() and (c == d).all() for (a, c), (b, d) in zip(first, second))
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)
    pixels = data.train.pixels[:4]
    assert torch.equal(augmented(pixels, 0, False, torch.Generator()), pixels)
    with pytest.raises(ValueError, match='do not fill a batch of 64'):
        next(batches(data, 64, 2, True, torch.Generator()))


def test_bad_input_is_told_in_a_sentence(tmp_path, capsys):
    for arguments, message in (
        (['no-such-suite'], 'no-such-suite is neither a config nor a suite (did you mean '),
        (['headline-m'], 'did you mean headline-s, headline-l, '),
        (['headline-s', '--only', 'nothing'], 'there is no run nothing; did you mean '),
        (['headline-s', '--fashion-mnist', str(tmp_path), '--results', str(tmp_path / 'r.csv')], 'lay it with'),
    ):
        assert compare.main([*arguments, '--work-dirs', str(tmp_path / 'w')]) == 1
        error = capsys.readouterr().err
        assert message in error and len(error) < 250
    with pytest.raises(ValueError, match="masks is 'some'"):
        Recipe(masks='some')

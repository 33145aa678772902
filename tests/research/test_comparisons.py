"""Each comparison in miniature, on digits: from the list of runs to the table, the latencies and the picture."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cnv2_plugin.benchmark import random_finished
from cnv2_plugin.deploy import lower
from tests.helpers import relative_difference
from tools.research import runs_table as compare
from tools.research import suites
from tools.research.measurement import kept
from tools.research.networks import NETWORKS
from tools.research.plot import Point, pareto_front, plot_runs
from tools.research.recipe import Recipe
from tools.research.results_file import read_rows, write_rows
from tools.research.runs import GONE, BusyError, NetworkRun, Place, complete, fingerprint, finished, run_folder

from .test_runs import smallest

pytest.importorskip('timm')
pytest.importorskip('sklearn')

ONE_NETWORK = [name for name in suites.SUITES if name.startswith(('pruning', 'ablation')) and '-l' not in name]


def main(tmp_path, *arguments):
    folders = ['--results', str(tmp_path / 'results.csv'), '--work-dirs', str(tmp_path / 'work')]
    return compare.main([*arguments, '--seeds', '0', *folders])


def check_table(table, runs):
    lines = table.splitlines()
    assert len(lines) == 2 + len(runs) and len({line.count('|') for line in lines}) == 1
    for run, line in zip(runs, lines[2:]):
        assert line.startswith(f'| {run.name}') and '(1)' in line


@pytest.mark.slow
@pytest.mark.parametrize('name', [*ONE_NETWORK, 'ours-s', 'distilled-s', 'parts-s', 'reactivation-s', 'confirmation-s'])
def test_a_suite_becomes_a_table_and_a_picture(name, tmp_path, monkeypatch, capsys):
    small = [smallest(run, 'condensenetv2-xs' if name in ONE_NETWORK else None) for run in suites.SUITES[name]()]
    small = [run for run in small if not GONE & set(run.recipe.sparsifier)]
    monkeypatch.setitem(suites.SUITES, name, lambda: small)
    assert main(tmp_path, name, '--plot', str(tmp_path / 'runs.png')) == 0
    check_table(capsys.readouterr().out, small)
    assert Image.open(tmp_path / 'runs.png').convert('L').getextrema()[0] < 255
    assert not list(tmp_path.glob('.*'))


@pytest.mark.slow
def test_the_headline_is_trained_timed_and_drawn(tmp_path, monkeypatch, capsys):
    small = [smallest(run) for run in suites.headline('s')]
    never = smallest(suites.pruning('s')[0])
    timed_runs = {run.name for run in [*small, never]}
    monkeypatch.setitem(suites.SUITES, 'headline-s', lambda: [*small, never])
    measured = ['--latency', '--training-time', '--rounds', '2']
    assert main(tmp_path, 'headline-s', *measured, '--plot', str(tmp_path / 'runs.png')) == 0
    table = capsys.readouterr().out
    check_table(table, [*small, never])
    assert 'latency, standard (ms)' in table and 'training, one core (s)' in table
    place = Place(tmp_path / 'results.csv', tmp_path)
    times = {kind: kept(place, kind) for kind in ('training_time', 'latency')}
    assert all(one.keys() == timed_runs for one in times.values())
    assert all(ms > 0 for one in times.values() for row in one.values() for ms in row.values())
    assert times['latency'][never.name].keys() == {'standard'}
    row = read_rows(tmp_path / 'results_latency.csv')[0]
    assert row['rounds'] == 2 and row['machine']['cores']
    assert Image.open(tmp_path / 'runs.png').convert('L').getextrema()[0] < 255


@pytest.mark.needs('kernels')
@pytest.mark.parametrize('name', ['sfr-shufflenetv2-s', 'condensenetv2-s'])
def test_networks_of_the_tables_have_a_native_form(name):
    torch.manual_seed(0)
    model = random_finished(NETWORKS[name].build())
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        assert relative_difference(lower(model, (1, 32, 32), 'native')(images), model(images)) < 1e-4


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / 'results.csv', tmp_path / 'work')


def test_a_run_whose_settings_are_gone_is_told(tmp_path):
    place = Place(tmp_path / 'results.csv', tmp_path / 'work')
    run = next(run for run in suites.SUITES['ablation']() if 'spacing' in run.recipe.sparsifier)
    with pytest.raises(BusyError, match='spacing'):
        complete(run, 0, place)


def ablation():
    runs = suites.ablation('condensenetv2-xs', 'digits', None, 2)
    return {run.name.rpartition('-')[2]: smallest(run) for run in runs}


def test_statistics_measured_after_a_stage_change_no_step_of_training(place):
    papers, measured = (complete(ablation()[name], 0, place) for name in ('papers', 'recalibrated'))
    assert papers['history']['loss'] == measured['history']['loss']
    assert papers['masks'] == measured['masks']


def test_a_teacher_is_trained_once_and_made_again_where_its_checkpoint_is_gone(place):
    runs = ablation()
    distilled, papers = (complete(runs[name], 0, place) for name in ('distilled', 'papers'))
    assert distilled['history']['loss'] != papers['history']['loss']
    state = torch.load(run_folder(runs['distilled'], 0, place) / 'checkpoint.pth', weights_only=True)
    never = torch.load(run_folder(runs['never'], 0, place) / 'checkpoint.pth', weights_only=True)
    assert state['state_dict'].keys() == never['state_dict'].keys()
    taught = finished(runs['never'], 0, place)
    shutil.rmtree(place.work)
    rows = read_rows(place.results)
    write_rows(place.results, [row for row in rows if row['name'] != runs['distilled'].name])
    again = complete(runs['distilled'], 0, place)
    assert again['history']['loss'] == distilled['history']['loss']
    assert finished(runs['never'], 0, place) == taught
    with pytest.raises(ValueError, match='distill=1.0 takes a trained network'):
        complete(replace(runs['distilled'], name='alone', teacher=None), 0, place)


def test_options_leave_older_runs_what_they_are():
    assert fingerprint(suites.headline('s')[0]) == '1598fa54ff9c'
    assert Recipe(recalibrate=0, rewind=0.0, distill=0.0, temperature=4.0).settings() == {}
    run = NetworkRun('one', 'condensenetv2-xs', Recipe())
    assert 'teacher' not in run.settings() and 'teacher' in replace(run, teacher=run).settings()
    assert Recipe(rewind=1.0).learning_rate(0.5) == pytest.approx(Recipe().learning_rate(0.5))
    assert Recipe(rewind=1.0).learning_rate(0.75) == pytest.approx(0.05)
    late = Recipe(rewind=0.5, sparsifier=dict(sparse_fraction=0.8))
    assert late.learning_rate(0.8 + 1e-9) == pytest.approx(0.05) and late.learning_rate(1.0) == 0


def test_the_pareto_front_is_what_nothing_beats(tmp_path):
    costs, gains = [1.0, 2.0, 2.0, 3.0, 1.0], [80.0, 85.0, 84.0, 85.0, 79.0]
    front = pareto_front(costs, gains)
    assert front == [0, 1]
    for i in set(range(5)) - set(front):
        assert any(costs[j] <= costs[i] and gains[j] >= gains[i] for j in front)
    points = [Point('dense-s', [80.0, 81.0], 1_000_000), Point('condensenetv2-s_never', [82.0], 2_000_000)]
    plot_runs(points, tmp_path / 'one.png')
    plot_runs([replace(point, latency=1.0) for point in points], tmp_path / 'two.png')
    assert Image.open(tmp_path / 'two.png').width > 1.5 * Image.open(tmp_path / 'one.png').width
    with pytest.raises(ValueError, match='nothing to plot'):
        plot_runs([], tmp_path / 'none.png')


@pytest.mark.parametrize(
    ('variant', 'entries'),
    [('factor {}', ['a', 'b', 'factor 4', 'factor 8']), ('', ['a-4', 'a-8', 'b-4', 'b-8'])],
)
def test_runs_of_variants_share_entries_of_the_legend(variant, entries, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        'matplotlib.figure.Figure.legend', lambda figure, handles, labels, **options: shown.extend(labels)
    )
    points = [Point(f'{arm}-{n}', [80.0], 10**6, None, arm, variant.format(n)) for arm in 'ab' for n in (4, 8)]
    plot_runs(points, tmp_path / 'runs.png')
    assert shown[1:] == entries

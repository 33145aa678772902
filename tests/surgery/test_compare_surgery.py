"""The comparison of dense, pruned and reactivated networks, at its smallest."""

import json

import pytest

from tests.openmmlab.test_tools_data import load_tool

SMALLEST = (
    '--epochs', '1', '--train-images', '64', '--test-images', '32', '--batch-size', '8', '--seeds', '0',
    '--rounds', '1', '--blocks', '1',
)  # fmt: skip


@pytest.fixture
def tool():
    pytest.importorskip('sklearn')
    return load_tool('compare_surgery')


def test_writes_table_figures_and_picture_and_trains_only_once(tool, tmp_path, capsys, monkeypatch):
    arguments = [*SMALLEST, '--datasets', 'digits', '--out', str(tmp_path / 'out')]
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
    assert set(arms['groups']['latency']) == {'condensed', 'optimised'}

    monkeypatch.setattr(tool, 'train', None)
    monkeypatch.setattr(tool, 'measured', lambda *_: [])
    args = tool.arguments().parse_args(arguments)
    found = tool.compare('digits', tool.digits(args), args)
    assert {arm: values['accuracy'] for arm, values in found['arms'].items()} == {
        arm: values['accuracy'] for arm, values in arms.items()
    }
    assert not [path for path in (tmp_path / 'out').rglob('.*')]


def test_every_arm_sees_the_same_batches(tool):
    args = tool.arguments().parse_args(SMALLEST)
    data = tool.digits(args)
    first, second = ([*tool.batches(data.train, 1, 8, 3)] for _ in range(2))
    assert len(first) == 8
    assert all((a == b).all() and (c == d).all() for (a, c), (b, d) in zip(first, second))


def test_bad_input_is_told_in_a_sentence(tool, tmp_path, capsys):
    arguments = [*SMALLEST, '--out', str(tmp_path), '--fashion-mnist', str(tmp_path), '--datasets', 'fashion-mnist']
    assert tool.main(arguments) == 1
    assert 'lay it with tools/prepare_fashion_mnist.py' in capsys.readouterr().err
    arguments = [*SMALLEST, '--out', str(tmp_path), '--datasets', 'digits', '--batch-size', '100']
    assert tool.main(arguments) == 1
    assert 'do not fill a batch of 100' in capsys.readouterr().err
    assert not (tmp_path / 'table.md').exists()

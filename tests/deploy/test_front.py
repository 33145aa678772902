"""The front of accuracy over latency."""

import json

import pytest

pytest.importorskip('onnxruntime')
pytest.importorskip('timm')

from cnv2_plugin.benchmark import front as module
from cnv2_plugin.benchmark.front import PUBLISHED, Point, front, measure_front, nearest_peer
from cnv2_plugin.cli import main


def point(name, top1, milliseconds, form='peer'):
    return Point(name, form, top1, 224, 1, milliseconds)


def test_front_and_nearest_peer():
    points = [
        point('slow', 70.0, 3.0), point('fast', 60.0, 1.0), point('best', 75.0, 2.0), point('equal', 60.0, 1.5),
        point('ours', 72.0, 1.8, 'native'),
    ]  # fmt: skip
    assert [p.name for p in front(points)] == ['fast', 'ours', 'best']
    assert nearest_peer(points[-1], points).name == 'best'
    assert nearest_peer(point('ours', 76.0, 9.0, 'native'), points) is None


def test_every_peer_can_be_built():
    import timm

    names = [name for name in PUBLISHED if not name.startswith('shufflenet')]
    assert len(PUBLISHED) >= 25
    if all(hasattr(timm.models, part) for part in ('starnet', 'shvit')):
        assert not [name for name in names if not timm.is_model(name)]


def test_networks_without_accuracy_are_refused():
    with pytest.raises(ValueError, match='condensenetv2_110_cifar.*condensenetv2_a'):
        measure_front(['condensenetv2_110_cifar'], peers=())
    with pytest.raises(ValueError, match='resnet5.*lcnet_050'):
        measure_front(['condensenetv2_a'], peers=('resnet5',))


@pytest.mark.slow
def test_command_prints_and_draws(tmp_path, monkeypatch, capsys):
    chosen = {name: PUBLISHED[name] for name in ('tinynet_e', 'lcnet_050')}
    monkeypatch.setattr(module.measure_front, '__defaults__', (*module.measure_front.__defaults__[:-1], tuple(chosen)))
    picture, figures = tmp_path / 'front.png', tmp_path / 'front.json'
    options = ['--front', '--rounds', '2', '--png', str(picture), '--json', str(figures), '--quiet']
    ours = 'shufflenetv2_x0_5'  # its files are written in seconds
    assert main(['benchmark', ours, *options]) == 0
    printed = capsys.readouterr().out
    assert 'nearest peer' in printed and ours in printed
    points = json.loads(figures.read_text())['points']
    assert {p['name'] for p in points} == {*chosen, ours}  # who is on the front depends on the machine
    assert {p['form'] for p in points} >= {'peer', 'standard', 'int8'} and picture.stat().st_size
    measured = next(p for p in points if p['form'] == 'standard')
    assert measured['top1'] == pytest.approx(60.3, abs=0.1) and measured['milliseconds'] > 0

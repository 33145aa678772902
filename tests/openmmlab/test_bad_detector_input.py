"""What does not fit a detector's config is told in one sentence, and nothing is written."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import Config

from cnv2_plugin.cli import main
from cnv2_plugin.toolkits.openmmlab.deploy_files import build
from tests.configs.stand_ins import CONFIGS, with_stand_ins
from tests.errors.cases import check_sentence
from tests.helpers import finish_pruning

BASE = 'retinanet_condensenetv2-small_fpn_1xb8-12e_fashion-scenes'
FOVEA = dict(
    _delete_=True, type='FoveaHead', num_classes=5, in_channels=48, feat_channels=48, stacked_convs=1,
    strides=[8, 16, 32], base_edge_list=[16, 32, 64], scale_ranges=[(1, 64), (32, 128), (64, 256)],
)  # fmt: skip
CHANGES = dict(
    plain=dict(),
    unknown_head={'model.bbox_head': FOVEA},
    soft_nms={'model.test_cfg.nms.type': 'soft_nms'},
    same_classes={'test_dataloader.dataset.metainfo': dict(classes=tuple('abcde'))},
    no_pipeline={'test_dataloader.dataset.pipeline': [], 'val_dataloader.dataset.pipeline': []},
    no_test_set={'test_dataloader': None, 'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
                 'test_cfg': None, 'test_evaluator': None},
    seven_classes={'model.bbox_head.num_classes': 7},
    two_classes={'test_dataloader.dataset.metainfo': dict(classes=('T-shirt', 'Bag'))},
    more_classes={'test_dataloader.dataset.metainfo': dict(classes=tuple('abcdef'))},
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs with stand-in scenes, and checkpoints of two of the repository's configs."""
    folder = tmp_path_factory.mktemp('inputs')
    for name, kind in (('good.pth', 'fpn'), ('other.pth', 'sfrfpn')):
        torch.manual_seed(0)
        model = finish_pruning(build(Config.fromfile(CONFIGS / 'mmdet' / f'{BASE.replace("fpn", kind)}.py')))
        meta = dict(dataset_meta=dict(classes=tuple('abcde')))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / name)
        torch.save(dict(state_dict=model.state_dict()), folder / f'nameless-{name}')
    cfg = Config.fromfile(CONFIGS / 'mmdet' / f'{BASE}.py')
    cfg = with_stand_ins(cfg, folder)
    cfg.update(test_dataloader=cfg.val_dataloader, test_cfg=dict(type='TestLoop'), test_evaluator=cfg.val_evaluator)
    cfg.dump(folder / 'base.py')
    for name, changes in CHANGES.items():
        cfg = Config.fromfile(folder / 'base.py')
        cfg.merge_from_dict(changes)
        cfg.dump(folder / f'{name}.py')
    model = finish_pruning(build(Config.fromfile(folder / 'unknown_head.py')))
    torch.save(dict(state_dict=model.state_dict()), folder / 'fovea.pth')
    return folder


def sentence(arguments, capsys):
    """The one line that the command ends with; none of what it was to write is there."""
    before = sorted(Path().iterdir())
    assert main(arguments) == 1
    assert sorted(path for path in Path().iterdir() if path.name != 'work_dirs') == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 ') or 'Traceback' in line]
    assert len(lines) == 1
    return lines[0]


DEPLOY = {
    'a head that is not known': ('unknown_head', 'fovea.pth', [], ('FoveaHead', '', '--features')),
    'a setting that is not known': ('soft_nms', 'good.pth', [], ('nms', 'soft_nms', 'iou_threshold')),
    'a config without a test set': ('no_test_set', 'good.pth', [], ('test pipeline', '--input C H W')),
    'a config without a test pipeline': ('no_pipeline', 'good.pth', [], ('test pipeline', '--input C H W')),
    'a checkpoint of another config': ('plain', 'other.pth', [], ('other.pth', 'plain.py', 'neck.reactivations.0')),
    'a checkpoint of other classes': ('seven_classes', 'good.pth', [], ('good.pth', 'bbox_head.retina_cls.weight')),
    'a size that the stride does not divide': ('plain', 'good.pth', ['3', '100', '96'], ('(3, 100, 96)', '32')),
    'images of other channels': ('plain', 'good.pth', ['1', '96', '96'], ('(1, 1, 96, 96)', '(N, 3, H, W)')),
}


@pytest.mark.parametrize('case', DEPLOY)
def test_a_detector_that_does_not_fit_is_not_deployed(case, folder, tmp_path, monkeypatch, capsys):
    config, checkpoint, size, expected = DEPLOY[case]
    monkeypatch.chdir(tmp_path)
    command = ['deploy', str(folder / f'{config}.py'), str(folder / checkpoint), '--out', 'd.pth', 'd.onnx']
    check_sentence(sentence([*command, *(['--input', *size] if size else [])], capsys), *expected)


TEST = {
    'a checkpoint of another config': ('plain', 'other.pth', ('other.pth', 'plain.py', 'neck.reactivations.0')),
    'a checkpoint of other classes': ('seven_classes', 'good.pth', ('good.pth', 'bbox_head.retina_cls.weight')),
    'a test set of fewer classes': ('two_classes', 'good.pth', ('two_classes.py', '2', 'knows 5 classes')),
    'a test set of more classes': ('more_classes', 'good.pth', ('more_classes.py', '6', 'knows 5 classes')),
    'a config without a test set': ('no_test_set', 'good.pth', ('no_test_set.py', 'test_dataloader')),
    'a config without a test pipeline': ('no_pipeline', 'good.pth', ('no_pipeline.py', 'pipeline')),
}


@pytest.mark.parametrize('case', TEST)
def test_a_detector_that_does_not_fit_is_not_tested(case, folder, tmp_path, monkeypatch, capsys):
    config, checkpoint, expected = TEST[case]
    monkeypatch.chdir(tmp_path)
    command = ['test', str(folder / f'{config}.py'), str(folder / checkpoint), '--out', 'm.json']
    check_sentence(sentence(command, capsys), *expected)


@pytest.mark.slow
@pytest.mark.needs('onnx')
def test_a_file_of_same_classes_or_another_size_is_not_tested(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('d', 'nameless'):
        given = folder / ('good.pth' if name == 'd' else 'nameless-good.pth')
        command = ['deploy', str(folder / 'plain.py'), str(given), '--out', f'{name}.onnx', '--input', '3', '64', '64']
        assert main(command) == 0
    capsys.readouterr()
    for config, file, expected in (
        ('two_classes', 'd.onnx', ('d.onnx', '5', '2')),
        ('two_classes', 'nameless.onnx', ('nameless.onnx', '5', '2')),
        ('more_classes', 'nameless.onnx', ('nameless.onnx', '5', '6')),
        ('same_classes', 'd.onnx', ('96, 96', '64, 64', '--input')),
    ):
        check_sentence(sentence(['test', str(folder / f'{config}.py'), file, '--out', 'm.json'], capsys), *expected)


def test_older_checkpoints_with_values_of_the_preprocessor_are_tested(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(folder / 'good.pth')
    checkpoint['state_dict']['data_preprocessor.mean'] = torch.zeros(3, 1, 1)
    torch.save(checkpoint, 'older.pth')
    assert main(['test', str(folder / 'plain.py'), 'older.pth', '--out', 'm.json']) == 0
    assert Path('m.json').is_file()

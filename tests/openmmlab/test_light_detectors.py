"""The light detector whose neck and head are pruned too: trained by its config, deployed as a whole, exactly."""

import json

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.runner import Runner

from cnv2_plugin.cli import main
from cnv2_plugin.layers import GroupSparseConv2d
from tests.configs.stand_ins import CONFIGS, with_stand_ins

PRUNED = CONFIGS / 'mmdet/rtmdet-light_condensenetv2-a_pafpn-pruned_8xb32-300e_coco-320.py'
NATIVE = pytest.param(True, marks=pytest.mark.needs('kernels'), id='native')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The config with stand-in scenes after sixteen iterations, and its last checkpoint."""
    folder = tmp_path_factory.mktemp('light')
    cfg = with_stand_ins(Config.fromfile(PRUNED), folder)
    cfg.test_dataloader, cfg.test_cfg, cfg.test_evaluator = cfg.val_dataloader, dict(type='TestLoop'), cfg.val_evaluator
    cfg.train_dataloader.batch_size = 1  # sixteen steps, since there are seven stages
    for step in cfg.train_dataloader.dataset.pipeline:
        step.update({key: (96, 96) for key in ('img_scale', 'scale', 'crop_size', 'size') if key in step})
    for step in cfg.val_dataloader.dataset.pipeline:
        step.update(size=(96, 96)) if step['type'] == 'Pad' else None
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=4)
    cfg.dump(folder / 'light.py')
    runner = Runner.from_cfg(cfg)
    runner.train()
    names = [name for name, m in runner.model.named_modules() if isinstance(m, GroupSparseConv2d) and m.is_finished()]
    assert {name.split('.')[0] for name in names} == {'backbone', 'neck', 'bbox_head'}
    return folder / 'light.py', folder / 'epoch_4.pth'


@pytest.mark.slow
@pytest.mark.needs('onnx')
@pytest.mark.parametrize('native', [pytest.param(False, id='standard'), NATIVE])
def test_a_pruned_neck_and_head_deploy_exactly(trained, tmp_path, native, capsys):
    config, checkpoint = map(str, trained)
    file = str(tmp_path / 'd.onnx')
    assert main(['deploy', config, checkpoint, '--out', file, *['--native'][:native], '--json']) == 0
    changed, written = json.loads(capsys.readouterr().out)['tables']
    figures = {row[0]: row[1:] for row in changed['rows']}
    assert figures['parameters'][1] < figures['parameters'][0]
    assert 'boxes in' in written['rows'][-1][-1] and 'thresholds' not in written['rows'][-1][-1]
    metrics = []
    for tested in ([checkpoint], [checkpoint, '--deploy'], [file]):
        out = tmp_path / 'metrics.json'
        assert main(['test', config, *tested, '--out', str(out), '--work-dir', str(tmp_path / 'w')]) == 0
        metrics.append(json.loads(out.read_text()))
    for other in metrics[1:]:
        assert other.keys() == metrics[0].keys()
        assert all(abs(value - metrics[0][name]) <= 1e-3 for name, value in other.items())

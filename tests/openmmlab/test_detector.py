"""mmdet's RetinaNet on our backbones and necks."""

from copy import deepcopy
from importlib import import_module

import numpy
import pytest
import torch
import torchvision
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import StagedSparsifier
from cnv2_plugin.toolkits.openmmlab.deploy_files import deployed_config
from tests.helpers import finish_pruning, randomize_norms, relative_difference

from .stand_ins import ARCH, CLASSES, hook_of, runner_config, train

BACKBONE = dict(type='CondenseNetV2', arch={**ARCH, 'layers': (1, 1, 2, 1), 'growth': (4, 8, 12, 8)})
BACKBONES = dict(
    condensenetv2=dict(BACKBONE, out_indices=(1, 2, 3), out_norm=True),
    sfr_shufflenet=dict(
        type='SFRShuffleNetV2', arch=dict(channels=(16, 24, 32), repeats=(2, 2, 2), stem_width=8), out_indices=(0, 1, 2)
    ),
)
NECKS = dict(fpn=dict(type='FPN'), sfrfpn=dict(type='SFRFPN', groups=4, sparse_factor=3))


def retinanet(backbone: dict, neck: dict) -> dict:
    """A small RetinaNet on three levels and two extra ones."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = MODELS.build(deepcopy(backbone))
    return dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[128.0] * 3, std=[60.0] * 3, pad_size_divisor=32),
        backbone=deepcopy(backbone),
        neck=dict(
            neck, in_channels=built.out_channels, out_channels=16, start_level=0, add_extra_convs='on_input', num_outs=4
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=CLASSES,
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[*built.out_strides, 2 * built.out_strides[-1]],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
        ),
    )


def build(cfg: dict):
    """Build a detector with random statistics and finished masks."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config(dict(model=cfg)).model)
        model.init_weights()
    return finish_pruning(randomize_norms(model)).eval()


def samples(count: int = 2, size: int = 64) -> list:
    out = []
    for i in range(count):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0), pad_shape=(size, size)
            )
        )
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [20.0, 4.0, 60.0, 30.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([i % CLASSES, 1]))
        out.append(sample)
    return out


def nms_in_float64(boxes, scores, iou_threshold, **options):
    """Stands in for mmcv's nms, whose kernel takes float32 only."""
    keep = torchvision.ops.nms(boxes, scores, iou_threshold)
    return torch.cat((boxes[keep], scores[keep, None]), 1), keep


@pytest.mark.parametrize('neck', NECKS)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_condensing_keeps_raw_outputs_and_boxes(backbone, neck, monkeypatch):
    monkeypatch.setattr(import_module('mmcv.ops.nms'), 'nms', nms_in_float64)
    model = build(retinanet(BACKBONES[backbone], NECKS[neck]))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        condensed = condense(model)
        assert not any(not m.deploy for m in condensed.modules() if isinstance(m, GroupSparseConv2d))
        for ours, theirs in zip(condensed(x, mode='tensor'), model(x, mode='tensor')):
            for a, b in zip(ours, theirs):
                assert relative_difference(a, b) < 1e-5
        model, condensed, x = model.double(), condensed.double(), x.double()
        for ours, theirs in zip(condensed(x, samples(), mode='predict'), model(x, samples(), mode='predict')):
            a, b = ours.pred_instances, theirs.pred_instances
            assert len(b) and b.bboxes.dtype == torch.float64 and torch.equal(a.labels, b.labels)
            assert torch.allclose(a.bboxes, b.bboxes, rtol=1e-9, atol=1e-9)
            assert torch.allclose(a.scores, b.scores, rtol=1e-9, atol=1e-12)


def test_detector_trains_every_parameter_and_its_neck_is_sparsified():
    cfg = retinanet(BACKBONES['condensenetv2'], NECKS['sfrfpn'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    losses = model(torch.randn(2, 3, 64, 64), samples(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    sparse = [name for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d)]
    assert any(name.startswith('neck.reactivations') for name in sparse)


class Scenes(torch.utils.data.Dataset):
    """Fixed noise images with two boxes each."""

    metainfo = dict(classes=('a', 'b', 'c'))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rng = numpy.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 255, (3, 64, 64), dtype=numpy.uint8))
        return dict(inputs=image, data_samples=samples(index % CLASSES + 1)[-1])


@pytest.mark.parametrize('frozen', [-1, 1])
def test_runner_trains_prunes_and_deploys_a_detector(tmp_path, frozen):
    DATASETS.register_module(module=Scenes, force=True)
    backbone = dict(BACKBONES['condensenetv2'], frozen_stages=frozen, norm_eval=frozen > 0)
    loader = dict(
        batch_size=2, num_workers=0, dataset=dict(type='Scenes'), sampler=dict(type='DefaultSampler', shuffle=False)
    )
    cfg = runner_config(
        tmp_path,
        default_scope='mmdet',
        model=retinanet(backbone, NECKS['sfrfpn']),
        train_dataloader=loader,
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        test_dataloader=None,
        test_cfg=None,
        test_evaluator=None,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.001), clip_grad=dict(max_norm=5.0)),
        custom_hooks=[dict(type='StagedSparsificationHook', group_lasso=1e-4), dict(type='Recorder'),
                      dict(type='SwitchToDeployHook')],
    )  # fmt: skip
    runner = train(cfg)
    assert all(m.is_finished() for m in runner.model.modules() if isinstance(m, GroupSparseConv2d))
    first = hook_of(runner, 'Recorder').records[0]['outputs']
    assert {'loss_cls', 'loss_bbox', 'loss_group_lasso'} <= set(first)
    deployed = Config.fromfile(tmp_path / 'epoch_4_deploy.py')
    assert deployed.model.neck.deploy and deployed.model.backbone.deploy
    deployed.update(load_from=str(tmp_path / 'epoch_4_deploy.pth'), work_dir=str(tmp_path / 'd'), experiment_name='d')
    again = Runner.from_cfg(deployed)
    again.load_or_resume()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(again.model.eval()(x, mode='tensor'), runner.model.eval()(x, mode='tensor')):
            for a, b in zip(ours, theirs):
                assert relative_difference(a, b) < 1e-5


def test_pruned_backbone_with_new_neck_schedules_only_the_neck(tmp_path):
    classification = build(retinanet(BACKBONES['condensenetv2'], NECKS['fpn']))
    torch.save(dict(state_dict=classification.state_dict()), tmp_path / 'pruned.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'pruned.pth'), prefix='backbone.')
    cfg = retinanet(dict(BACKBONES['condensenetv2'], init_cfg=init_cfg), NECKS['sfrfpn'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        model.init_weights()
    sparsifier = StagedSparsifier(model, total_steps=8)
    before = {name: layer.mask.clone() for name, layer in sparsifier.layers.items()}
    sparsifier.set_progress(0.3)
    changed = [name for name, layer in sparsifier.layers.items() if not torch.equal(layer.mask, before[name])]
    assert changed and all(name.startswith('neck.') for name in changed)


def test_deployed_config_builds_a_detector():
    cfg = Config(dict(model=retinanet(BACKBONES['condensenetv2'], NECKS['sfrfpn']), default_scope='mmdet'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(deployed_config(cfg).model)
    assert all(m.deploy for m in model.modules() if isinstance(m, GroupSparseConv2d))

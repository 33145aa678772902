"""MMSegmentation and MMPose on our backbones, where they are installed: a training step, pruned, condensed."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import StagedSparsifier
from tests.helpers import randomize_norms, relative_difference

from .stand_ins import ARCH

BACKBONE = dict(type='CondenseNetV2', arch={**ARCH, 'layers': (1, 2, 1), 'growth': (4, 8, 12)}, out_indices=(1, 2))
NORM = dict(mean=[128.0] * 3, std=[60.0] * 3)


def built(scope, cfg):
    """The library's own model on our backbone, and the widths that the backbone gave."""
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(BACKBONE))
        torch.manual_seed(0)
        return MODELS.build(cfg(backbone.out_channels, backbone.out_strides))


def train_prune_condense(scope, model, inputs, samples):
    """One step of the optimiser, every stage, and the same outputs from group convolutions."""
    sparsifier = StagedSparsifier(model, total_steps=10)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with DefaultScope.overwrite_default_scope(scope):
        optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1)))
        losses, _ = model.parse_losses(model(inputs, samples, mode='loss'))
        optimizer.update_params(losses)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert sum(name.startswith('backbone') for name in moved) > 5
    sparsifier.set_progress(1.0)
    model = randomize_norms(model).eval()
    condensed = condense(model)
    assert not any(not m.deploy for m in condensed.modules() if isinstance(m, GroupSparseConv2d))
    with torch.no_grad():
        ours, theirs = condensed(inputs, None, mode='tensor'), model(inputs, None, mode='tensor')
    assert relative_difference(ours, theirs) < 1e-4


def test_a_segmentor_of_mmsegmentation():
    pytest.importorskip('mmseg.models')
    from mmseg.structures import SegDataSample

    model = built(
        'mmseg',
        lambda channels, strides: dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64), **NORM),
            backbone=dict(BACKBONE),
            decode_head=dict(
                type='FCNHead', in_channels=channels[1], in_index=1, channels=16, num_convs=1, concat_input=False,
                num_classes=3, norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss'),
            ),
            auxiliary_head=dict(
                type='FCNHead', in_channels=channels[0], in_index=0, channels=16, num_convs=1, concat_input=False,
                num_classes=3, norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
            ),
            test_cfg=dict(mode='whole'),
        ),
    )  # fmt: skip
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 64, 64)))
        samples.append(sample)
    train_prune_condense('mmseg', model, torch.randn(2, 3, 64, 64), samples)


def test_a_pose_estimator_of_mmpose():
    pytest.importorskip('mmpose.models')
    from mmpose.structures import PoseDataSample

    def config(channels, strides):
        size = 64 // strides[0]
        decoder = dict(type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(size, size), sigma=2)
        return dict(
            type='TopdownPoseEstimator',
            data_preprocessor=dict(type='PoseDataPreprocessor', **NORM),
            backbone=dict(BACKBONE, out_indices=(1,)),
            head=dict(
                type='HeatmapHead', in_channels=channels[0], out_channels=5, deconv_out_channels=None,
                loss=dict(type='KeypointMSELoss', use_target_weight=True), decoder=decoder,
            ),
        )  # fmt: skip

    model = built('mmpose', config)
    samples = []
    for _ in range(2):
        sample = PoseDataSample(metainfo=dict(img_shape=(64, 64)))
        size = model.head.decoder.heatmap_size
        sample.gt_fields = PixelData(heatmaps=torch.rand(5, *size))
        sample.gt_instance_labels = InstanceData(keypoint_weights=torch.ones(1, 5))
        samples.append(sample)
    train_prune_condense('mmpose', model, torch.randn(2, 3, 64, 64), samples)

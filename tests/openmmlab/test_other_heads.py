"""``SFRFPN`` under RTMDet's and FCOS's heads, from mmdet's own configs: a training step, pruned, condensed."""

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import StagedSparsifier
from tests.helpers import randomize_norms, relative_difference

from .stand_ins import ARCH
from .test_detector import samples

HEADS = dict(
    rtmdet=('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', dict(num_outs=3)),
    fcos=(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        dict(num_outs=5, add_extra_convs='on_output', relu_before_extra_convs=True),
    ),
)
CONFIG = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        _delete_=True, type='CondenseNetV2', arch={arch!r}, out_indices=(2, 3, 4), out_norm=True
    ),
    neck=dict(
        _delete_=True, type='SFRFPN', in_channels={channels!r}, out_channels=32, groups=4, sparse_factor=3, **{neck!r}
    ),
    bbox_head=dict(in_channels=32, feat_channels=32, num_classes=3),
)
"""
FIVE = {**ARCH, 'layers': (1, 1, 1, 2, 1), 'growth': (4, 8, 8, 12, 8)}


def detector(head, folder):
    """The detector of a user's config with the head's own losses, assigners and optimiser."""
    base, neck = HEADS[head]
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        channels = MODELS.build(dict(type='CondenseNetV2', arch=FIVE, out_indices=(2, 3, 4))).out_channels
        (folder / 'config.py').write_text(CONFIG.format(base=base, arch=FIVE, channels=channels, neck=neck))
        cfg = Config.fromfile(folder / 'config.py')
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        return model, build_optim_wrapper(model, cfg.optim_wrapper)


@pytest.mark.parametrize('head', HEADS)
def test_heads_of_mmdet_train_prune_and_condense(head, tmp_path):
    model, optimizer = detector(head, tmp_path)
    sparsifier = StagedSparsifier(model, total_steps=10)
    assert any(name.startswith('neck.reactivations') for name in sparsifier.layers)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images = torch.randint(0, 255, (2, 3, 64, 64)).float()
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples()), training=True)
        losses, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.update_params(losses)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith('backbone') for name in moved) and any('reactivations' in name for name in moved)
    sparsifier.set_progress(1.0)
    assert sparsifier.finished
    model = randomize_norms(model).eval()
    condensed = condense(model)
    assert not any(not m.deploy for m in condensed.modules() if isinstance(m, GroupSparseConv2d))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(condensed(x, mode='tensor'), model(x, mode='tensor')):
            for a, b in zip(ours, theirs):
                assert relative_difference(a, b) < 1e-4

"""Small segmenters of MMSegmentation on our backbone, one for every head, with random weights."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.helpers import finish_pruning, randomize_norms

from .stand_ins import ARCH, CLASSES

BACKBONE = dict(
    type='CondenseNetV2', arch={**ARCH, 'layers': (1, 1, 2, 1), 'growth': (4, 8, 12, 8)}, out_indices=(0, 1, 2),
    out_norm=True,
)  # fmt: skip
WIDTH = 16
SEVERAL = dict(in_index=[0, 1, 2])
HEADS: dict[str, dict[str, Any]] = dict(
    fcn=dict(type='FCNHead', in_index=1, num_convs=1),
    fcn_resized=dict(type='FCNHead', input_transform='resize_concat', concat_input=False, **SEVERAL),
    fcn_one_channel=dict(type='FCNHead', in_index=1, num_classes=2, out_channels=1, threshold=0.4),
    fcn_corners=dict(type='FCNHead', in_index=1, align_corners=True),
    lraspp=dict(type='LRASPPHead', branch_channels=(8, 12), input_transform='multiple_select', **SEVERAL),
    psp=dict(type='PSPHead', in_index=2, pool_scales=(1, 2, 3, 6)),
    uper=dict(type='UPerHead', pool_scales=(1, 2, 3), **SEVERAL),
    segformer=dict(type='SegformerHead', **SEVERAL),
    aspp=dict(type='ASPPHead', in_index=2, dilations=(1, 2)),
    separable_aspp=dict(type='DepthwiseSeparableASPPHead', in_index=2, dilations=(1, 2), c1_channels=8),
)  # fmt: skip


def config_of(name: str, mode: str = 'whole', **head: Any) -> dict[str, Any]:
    """The model of a config; arguments as of :func:`segmenter`."""
    import mmseg.models  # noqa: F401 -- registers what is in the package

    plain = dict(num_classes=CLASSES, norm_cfg=dict(type='SyncBN'), channels=WIDTH)
    decode = {**plain, **deepcopy(HEADS[name]), **head}
    with DefaultScope.overwrite_default_scope('mmseg'):
        channels = MODELS.build(deepcopy(BACKBONE)).out_channels
    index = decode['in_index']
    decode['in_channels'] = channels[index] if isinstance(index, int) else [channels[i] for i in index]
    if 'c1_channels' in decode:
        decode['c1_in_channels'] = channels[0]
    return dict(
        type='EncoderDecoder', backbone=deepcopy(BACKBONE), decode_head=decode, test_cfg=dict(mode=mode),
        auxiliary_head=dict(type='FCNHead', in_channels=channels[0], in_index=0, channels=8, num_classes=CLASSES),
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[128.0] * 3, std=[60.0] * 3, bgr_to_rgb=True),
    )  # fmt: skip


def segmenter(name: str, mode: str = 'whole', **head: Any) -> nn.Module:
    """Build a segmenter with random statistics and finished masks.

    Args:
        name: key of ``HEADS``.
        mode: of the test config.
        head: what to change in the head.
    """
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config(dict(model=config_of(name, mode, **head))).model)
    nn.init.normal_(model.decode_head.conv_seg.weight)
    model = finish_pruning(randomize_norms(model)).eval()
    with torch.no_grad():  # so that no class takes all pixels
        logits = model(torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(1)), mode='tensor')
        model.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    return model

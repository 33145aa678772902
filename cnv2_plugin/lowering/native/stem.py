"""The first convolution of a network, computed with the stages behind it."""

from typing import Optional

import torch
from torch import nn

from ...kernels.plan import MOST_SPATIAL_INPUTS, PLAIN, SPLITTED, Plan
from .layers import Affine, UnsupportedError

HIDDEN_SLOT = 2
"""Slots from here on hold what lives within a layer; those before it the features of a stage and of the next."""


def stem_conv(plan: Plan, conv: nn.Conv2d, dst: int, affine: Optional[Affine] = None, act: int = 0) -> None:
    """The 3x3 convolution that reads the images; a normalisation behind it goes into the weights."""
    strides = {(1, 1): 1, (2, 2): 2}
    plain = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == 'zeros'
    if not plain or conv.groups != 1 or conv.stride not in strides or conv.in_channels > MOST_SPATIAL_INPUTS:
        raise UnsupportedError
    stride = strides[conv.stride]
    images = plan.add_map(conv.in_channels * (4 if stride == 2 else 1), HIDDEN_SLOT, padded=True)
    plan.load(images, SPLITTED if stride == 2 else PLAIN)
    weight, bias = conv.weight.detach().double(), None
    if affine is not None:
        weight, bias = weight * affine[0][:, None, None, None], affine[1][None]
    channels = torch.arange(conv.in_channels)[None], torch.arange(conv.out_channels)[None]
    plan.spatial(images, dst, weight[None], *channels, bias, stride, act)

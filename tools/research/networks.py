"""Small networks for 32x32 images by name, of two sizes of multiply-adds.

Every network keeps the resolution that images of this size leave it: the stem has stride 2 in the dense networks, and
2 or 1 and no further pooling in the peers, whose ImageNet form would reduce 32x32 to one pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import timm
from torch import nn

from .recipe import not_as_by_default

_DENSE = dict(groups_1x1=1, groups_3x3=1, groups_sfr=0, condense_factor=1, sparse_factor=1)
_V1 = dict(groups_1x1=4, groups_3x3=4, groups_sfr=0, condense_factor=4, sparse_factor=4)
_V2 = {**_V1, 'groups_sfr': 4}
_SFR = dict(with_sfr=True, max_groups=4, sparse_factor=4)


@dataclass(frozen=True)
class Network:
    """How a network is made.

    Attributes:
        family: ``'condensenet'``, ``'condensenetv2'``, ``'shufflenetv2'``, ``'sfr_shufflenetv2'``, ``'mobilenetv3'``
            or ``'densenet'`` (timm's).
        options: the arch of our families, the arguments of the others.
        zero_init_sfr: reactivation starts at 0, see :class:`~cnv2_plugin.models.ShuffleNetTrunk`.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    zero_init_sfr: bool = False

    def build(self, in_chans: int = 1, num_classes: int = 10) -> nn.Module:
        """The network before training, for images ``(N, in_chans, 32, 32)``."""
        ends: dict[str, Any] = dict(in_chans=in_chans, num_classes=num_classes)
        if self.zero_init_sfr:
            ends['zero_init_sfr'] = True
        return _BUILDERS[self.family](self.options, ends)

    def settings(self) -> dict[str, Any]:
        """Plain values, see :func:`~tools.research.recipe.not_as_by_default`."""
        return not_as_by_default(self)


def _condensenet(family: str) -> Callable[..., nn.Module]:
    return lambda arch, ends: timm.create_model(family, arch=arch, **ends)


def _shufflenet(name: str) -> Callable[..., nn.Module]:
    def build(arch: dict, ends: dict) -> nn.Module:
        model = timm.create_model(name, arch=arch, **ends)
        model.stem.pool = nn.Identity()
        return model

    return build


def _mobilenet(options: dict, ends: dict) -> nn.Module:
    from timm.models.mobilenetv3 import _gen_mobilenet_v3

    model = _gen_mobilenet_v3('mobilenetv3_small_100', options['width'], **ends)
    model.conv_stem.stride = (1, 1)
    return model


def _densenet(options: dict, ends: dict) -> nn.Module:
    return timm.create_model('densenet121', **options, **ends)


_BUILDERS = {
    'condensenet': _condensenet('condensenet'),
    'condensenetv2': _condensenet('condensenetv2'),
    'shufflenetv2': _shufflenet('shufflenetv2_x0_5'),
    'sfr_shufflenetv2': _shufflenet('sfr_shufflenetv2_x0_5'),
    'mobilenetv3': _mobilenet,
    'densenet': _densenet,
}


def _shuffle(channels, repeats, stem_width, final_width, **sfr) -> dict[str, Any]:
    return dict(
        channels=channels, repeats=repeats, stem_width=stem_width, final_width=final_width,
        **(sfr or dict(with_sfr=False)),
    )  # fmt: skip


NETWORKS = {
    'dense-s': Network('condensenet', dict(layers=(2, 3, 4, 4), growth=(4, 4, 9, 18), **_DENSE)),
    'condensenet-s': Network('condensenet', dict(layers=(2, 4, 4, 4), growth=(8, 8, 16, 32), **_V1)),
    'condensenetv2-s': Network('condensenetv2', dict(layers=(2, 3, 4, 4), growth=(8, 8, 16, 32), **_V2)),
    'shufflenetv2-s': Network('shufflenetv2', _shuffle((44, 88, 176), (2, 4, 2), 16, 272)),
    'sfr-shufflenetv2-s': Network('sfr_shufflenetv2', _shuffle((44, 88, 176), (2, 4, 2), 16, 216, **_SFR)),
    'condensenetv2-s-bare': Network('condensenetv2', dict(layers=(2, 3, 4, 4), growth=(8, 8, 16, 32), **_V1)),
    'sfr-shufflenetv2-s-bare': Network('shufflenetv2', _shuffle((44, 88, 176), (2, 4, 2), 16, 216)),
    'mobilenetv3-s': Network('mobilenetv3', dict(width=0.3)),
    'dense-l': Network('condensenet', dict(layers=(4, 6, 8), growth=(4, 8, 18), **_DENSE)),
    'condensenet-l': Network('condensenet', dict(layers=(4, 7, 8), growth=(8, 16, 32), **_V1)),
    'condensenetv2-l': Network('condensenetv2', dict(layers=(4, 6, 8), growth=(8, 16, 32), **_V2)),
    'condensenetv2-l-bare': Network('condensenetv2', dict(layers=(4, 6, 8), growth=(8, 16, 32), **_V1)),
    'shufflenetv2-l': Network('shufflenetv2', _shuffle((80, 160, 320), (3, 6, 3), 24, 960)),
    'sfr-shufflenetv2-l': Network('sfr_shufflenetv2', _shuffle((80, 160, 320), (3, 6, 3), 24, 784, **_SFR)),
    'mobilenetv3-l': Network('mobilenetv3', dict(width=0.95)),
    'condensenetv2-xs': Network('condensenetv2', dict(layers=(2, 3, 3), growth=(8, 8, 16), stem_stride=2, **_V2)),
}
NETWORKS |= {
    f'{name}-zero': replace(NETWORKS[name], zero_init_sfr=True) for name in ('condensenetv2-s', 'sfr-shufflenetv2-s')
}
"""Networks by name; ``-s`` have 1.1 M, ``-l`` 5.0 M multiply-adds after pruning, ``-xs`` is for quick tests.

``-bare`` are the same without reactivation, and nothing in its place; ``-zero`` start with reactivation of 0.
"""

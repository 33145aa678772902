"""What the arms of ``tools/research/compare_pretrained.py`` do to the trunk of a pretrained network."""

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch
from torch import Tensor, nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import add_reactivation, to_learned_groups

from .arms import without_channels
from .networks import NETWORKS
from .pretrained_network import IMAGE_SIZE, narrower, new_trunk
from .train import sparse_layers, unit_masks

FEATURES = (24, 16, 16)
"""What the front gives for an image, and the trunk takes."""

MIN_CHANNELS = 16
CHANNEL_STEPS = 80

Masks = Optional[dict[str, Tensor]]


@dataclass(frozen=True)
class Arm:
    """One way to a smaller network.

    Attributes:
        label: what a table calls it.
        masks: the recipe's ``masks``.
        operate: changes the trunk in place for a factor, and returns the final masks where they are given; takes
            features, or None where the masks do not matter.
        scratch: makes the network of images for a number of classes and a factor, which is trained from random
            weights; None where the pretrained trunk is gone on from.
        sparsifier: options of the recipe's sparsifier.
    """

    label: str
    masks: str
    operate: Callable[[nn.Module, int, Optional[Tensor]], Masks]
    scratch: Optional[Callable[[int, int], nn.Module]] = None
    sparsifier: dict[str, Any] = field(default_factory=dict)


def to_groups(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> None:
    """Let the 1x1 layers learn as many groups as the factor, or as many as divide a layer's outputs."""
    to_learned_groups(trunk, factor, factor, min_channels=MIN_CHANNELS, input_size=FEATURES)


def strongest_masks(trunk: nn.Module) -> dict[str, Tensor]:
    """What pruning in one step leaves: in every group the inputs with the largest L1 norm."""
    copy = deepcopy(trunk)
    for layer in sparse_layers(copy).values():
        layer.prune_to(layer.num_stages)
    return unit_masks(copy)


def most_varied_masks(trunk: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """What pruning in one step leaves by the L1 norm times the deviation of the input channel."""
    copy, seen = deepcopy(trunk), inputs_of(trunk, pixels)
    for name, layer in sparse_layers(copy).items():
        sizes = layer.grouping.by_unit(layer.conv.weight.detach()).abs().sum(2)
        layer.prune_to(layer.num_stages, importance=sizes * seen[name].std((0, 2, 3)))
    return unit_masks(copy)


@torch.no_grad()
def inputs_of(trunk: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """What the layers with groups take, by name, in evaluation mode."""
    copy, found = deepcopy(trunk).eval(), {}

    def keeper(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: found.__setitem__(name, inputs[0])

    for name, layer in sparse_layers(copy).items():
        layer.register_forward_hook(keeper(name))
    copy(pixels.float())
    return found


def plain_masks(layers: Mapping[str, GroupSparseConv2d]) -> dict[str, Tensor]:
    """Masks of a standard group convolution whose outputs are shuffled: each group sees inputs side by side.

    Where a layer has fewer groups than its factor, each group sees the first of its share of the inputs.
    """
    masks = {}
    for name, layer in layers.items():
        kept, mask = layer.kept_per_group(), torch.zeros(layer.groups, layer.num_units, dtype=torch.bool)
        for group in range(layer.groups):
            first = min(group * layer.num_units // layer.groups, layer.num_units - kept)
            mask[group, first : first + kept] = True
        masks[name] = mask
    return masks


def hash_of(masks: Mapping[str, Tensor]) -> str:
    """Twelve digits that change with every connection."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + masks[name].numpy().tobytes())
    return digest.hexdigest()[:12]


def _nothing(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> None:
    return None


def _strongest(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> Masks:
    to_groups(trunk, factor)
    return strongest_masks(trunk)


def _most_varied(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> Masks:
    to_groups(trunk, factor)
    return None if pixels is None else most_varied_masks(trunk, pixels)


def _plain(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> Masks:
    to_groups(trunk, factor)
    return plain_masks(sparse_layers(trunk))


def _reactivated(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> None:
    to_groups(trunk, factor)
    add_reactivation(trunk, factor, factor, min_channels=MIN_CHANNELS, input_size=FEATURES)


def in_groups(trunk: nn.Module, factor: int) -> int:
    """Multiply-adds of a trunk once its groups are pruned; the trunk stays as it is."""
    copy = deepcopy(trunk)
    to_groups(copy, factor)
    return count_cost(copy, FEATURES).mult_adds_pruned


def _fewer_channels(trunk: nn.Module, factor: int, pixels: Optional[Tensor] = None) -> None:
    """Remove channels, the same share in every layer, until the trunk costs what groups of this factor leave.

    Raises:
        ImportError: torch-pruning is not installed.
        ValueError: no share is enough.
    """
    wanted = in_groups(trunk, factor)
    low, high = 0, CHANNEL_STEPS - 1
    while low < high:
        middle = (low + high) // 2
        fits = _cost_without(trunk, middle) <= wanted
        low, high = (low, middle) if fits else (middle + 1, high)
    pruned = without_channels(trunk, low / CHANNEL_STEPS, FEATURES, norm=2)
    if count_cost(pruned, FEATURES).mult_adds > wanted:
        raise ValueError(f'no share of channels brings the trunk down to {wanted} multiply-adds.')
    trunk.__dict__.update(pruned.__dict__)


def _cost_without(trunk: nn.Module, steps: int) -> int:
    return count_cost(without_channels(trunk, steps / CHANNEL_STEPS, FEATURES, norm=2), FEATURES).mult_adds


def _narrow(classes: int, factor: int) -> nn.Module:
    trunk, dense = new_trunk(classes), narrower(classes, 1 << 62)
    saved = count_cost(trunk, FEATURES).mult_adds - in_groups(trunk, factor)
    return narrower(classes, count_cost(dense, IMAGE_SIZE).mult_adds - saved)


def _condensenetv2(classes: int, factor: int) -> nn.Module:
    network = NETWORKS['condensenetv2-s']
    factors = dict(condense_factor=factor, sparse_factor=factor)
    return replace(network, options={**network.options, **factors}).build(3, classes)


ARMS = {
    'unpruned': Arm('unpruned', 'none', _nothing),
    'learned': Arm('learned groups', 'learned', to_groups),
    'early': Arm('learned groups, in the first tenth', 'learned', to_groups, sparsifier=dict(sparse_fraction=0.1)),
    'random': Arm('random groups', 'random', to_groups),
    'magnitude': Arm('groups by magnitude, in one step', 'given', _strongest),
    'activations': Arm("groups by magnitude and the inputs' deviation, in one step", 'given', _most_varied),
    'plain': Arm('plain groups and shuffle', 'given', _plain),
    'channels': Arm('fewer channels (torch-pruning)', 'none', _fewer_channels),
    'narrow': Arm('narrower, from scratch', 'none', _nothing, _narrow),
    'reactivated': Arm('learned groups and reactivation', 'learned', _reactivated),
    'scratch-learned': Arm('CondenseNetV2-s, from scratch, learned groups', 'learned', _nothing, _condensenetv2),
    'scratch-random': Arm('CondenseNetV2-s, from scratch, random groups', 'random', _nothing, _condensenetv2),
}
"""Arms by name."""

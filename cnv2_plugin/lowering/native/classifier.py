"""A whole classifier up to its last linear layer as one plan, and its parts as plans on the same weights."""

from collections.abc import Iterable
from typing import NamedTuple, Optional, cast

from torch import nn

from ...kernels.operator import TO_ONE_PIXEL
from ...models import CondenseNetTrunk
from ...models.condensenet import DenseStage
from .dense import dense_plan
from .head import Head, add_head
from .layers import UnsupportedError, norm_act
from .module import NativeStages


class NativeClassifier(NamedTuple):
    """Operators that share their weights.

    Attributes:
        whole: images to what the last linear layer reads.
        trunk: images to features.
        head: features to what the last linear layer reads.
    """

    whole: NativeStages
    trunk: NativeStages
    head: NativeStages


def native_classifier(model: CondenseNetTrunk, channels: int, head: Head) -> Optional[NativeClassifier]:
    """Stem, stages, last normalisation and head of a condensed model, or None where the kernels do not compute them.

    Args:
        model: condensed.
        channels: that its stem gives to its stages.
        head: of the model.
    """
    stages = list(cast(Iterable[DenseStage], model.stages))
    if not isinstance(model.norm, nn.Sequential):
        return None
    try:
        whole, features, changes = dense_plan(stages, channels, model.stem)
        affine, act = norm_act(*model.norm)
        width, hidden = whole.out_channels, head.conv.out_channels
        trunk = whole.part(whole.in_channels, width, whole.instructions)
        trunk.store(features, range(width), affine, act)
        whole.normalise(features, affine, act)
        done = len(whole.instructions)
        add_head(whole, head, features)
    except UnsupportedError:
        return None
    behind = whole.part(width, hidden)
    behind.load(features)
    behind.instructions += whole.instructions[done:]
    whole.out_channels = hidden
    weights = whole.weights()
    made = NativeClassifier(
        NativeStages(whole, [*changes, TO_ONE_PIXEL], weights), NativeStages(trunk, changes, weights),
        NativeStages(behind, [TO_ONE_PIXEL], weights),
    )  # fmt: skip
    made.whole.choices = {}  # told by the other two
    return made

"""A whole classifier up to its last linear layer as one plan, and its two parts as plans on the same weights."""

from collections.abc import Iterable
from typing import NamedTuple, Optional, cast

from torch import Tensor, nn

from ...kernels.operator import TO_ONE_PIXEL
from ...models import CondenseNetTrunk
from ...models.condensenet import DenseStage
from .chain import is_chain
from .dense import dense_plan
from .head import Head, add_head, native_head
from .layers import UnsupportedError, norm_act
from .module import NativeStages


class NativeClassifier(NamedTuple):
    """Operators; the whole one reads the weights of the other two, and saves none of its own.

    Attributes:
        whole: images to what the last linear layer reads.
        trunk: images to features.
        head: features to what the last linear layer reads.
    """

    whole: NativeStages
    trunk: NativeStages
    head: NativeStages


def native_classifier(model: CondenseNetTrunk, head: Head, example: Tensor) -> Optional[NativeClassifier]:
    """Stem, stages, last normalisation and head of a condensed model of timm's kind.

    Args:
        model: in evaluation mode.
        head: of the model.
        example: images ``(N, C, H, W)``.

    Returns:
        The operators, or None where the kernels do not compute all of it, where the model does something between its
        parts, or where somebody listens to them.
    """
    get_classifier = getattr(model, 'get_classifier', None)
    if get_classifier is None or not hasattr(model, 'fused') or not isinstance(model.norm, nn.Sequential):
        return None
    if not is_chain(model, [model.stem, model.stages, model.norm, *head, get_classifier()], example):
        return None
    try:
        trunk, features, changes = dense_plan(list(cast(Iterable[DenseStage], model.stages)), model.stem)
        affine, act = norm_act(*model.norm)
        whole = trunk.continued(head.conv.out_channels)
        trunk.store(features, range(trunk.out_channels), affine, act)
        whole.normalise(features, affine, act)
        border = whole.begin_weights()
        add_head(whole, head, features)
    except UnsupportedError:
        return None
    weights = whole.weights()
    behind = native_head(head, weights[border:])
    assert behind is not None
    return NativeClassifier(
        NativeStages(whole, [*changes, TO_ONE_PIXEL], weights, saved=False),
        NativeStages(trunk, changes, weights[:border]),
        behind,
    )

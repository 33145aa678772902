"""Putting the native kernels into a model."""

from collections.abc import Mapping
from typing import Optional, Union

import torch
from torch import Tensor, nn

from ..graph.model_parts import Part, dtype_device, parts, replace_module
from ..kernels.library import load
from ..models import CondenseNetTrunk, ShuffleNetTrunk
from ..models.condense import condense
from .native import (
    DeferredConv2d,
    Head,
    NativeClassifier,
    NativeStages,
    find_head,
    native,
    native_classifier,
    native_head,
)


def native_model(
    model: nn.Module,
    input_size: tuple[int, int, int],
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
) -> nn.Module:
    """The condensed model with what the native kernels compute in their operators.

    Args:
        model: finished; left as it is.
        input_size: ``(C, H, W)``.
        choices: refused, because the kernels have one form only.
        example: input for models that do not take ``(1, *input_size)``.

    Raises:
        ValueError: there are choices, the model is not float32 on the CPU, or the kernels compute no part of it.
        KernelsMissingError: the kernels are not built.
    """
    load()
    if choices:
        raise ValueError('choices are forms out of standard operators; leave them out with the native kernels.')
    dtype, device = dtype_device(model)
    if (dtype, device) != (torch.float32, torch.device('cpu')):
        raise ValueError(
            f'the model is {dtype} on {device}; the native kernels take float32 on the CPU, so convert it with '
            f'.float().cpu(), or take another runtime.'
        )
    made = condense(model).eval()
    found = parts(made, input_size, example)
    _leave_out_dropout(made)
    if isinstance(made, CondenseNetTrunk):
        images = torch.zeros(1, *input_size) if example is None else example
        head = find_head(made, made.norm, images)
        if head is not None and (classifier := native_classifier(made, head, images)) is not None:
            return _with_classifier(made, head, classifier)
        if head is not None and (module := native_head(head)) is not None:
            _put_head(made, head, module)
    changed = 0
    for part in found:
        module = _with_surroundings(made, part) or native(part.module, part.input_shape[1])
        if module is not None:
            changed += 1
            made = replace_module(made, part.name, module)
    if not changed:
        raise ValueError(
            'the native kernels compute no part of this model (they know ReLU, ReLU6 and hard-swish, batch '
            'normalisation and 3x3 convolutions); take another runtime.'
        )
    return made


def _with_surroundings(model: nn.Module, part: Part) -> Optional[NativeStages]:
    """Stages with the stem in front, and with the normalisation behind where they are all stages of the trunk."""
    trunk = _trunk_that_begins_with(model, part.module)
    if trunk is None:
        return None
    module = None
    if part.module is trunk.stages and isinstance(trunk, CondenseNetTrunk) and isinstance(trunk.norm, nn.Sequential):
        module = native(part.module, part.input_shape[1], trunk.stem, trunk.norm)
        if module is not None:
            trunk.add_module('norm', nn.Identity())
    if module is None:
        module = native(part.module, part.input_shape[1], trunk.stem)
    if module is not None:
        _defer_stem(trunk)
    return module


def _defer_stem(trunk: Union[CondenseNetTrunk, ShuffleNetTrunk]) -> None:
    conv = next(module for module in trunk.stem.modules() if isinstance(module, nn.Conv2d))
    trunk.add_module('stem', DeferredConv2d(conv))


def _trunk_that_begins_with(model: nn.Module, part: nn.Module) -> Union[CondenseNetTrunk, ShuffleNetTrunk, None]:
    """The trunk of our own whose stem feeds a part of it and nothing else."""
    for module in model.modules():
        if isinstance(module, (CondenseNetTrunk, ShuffleNetTrunk)):
            if part in (module.stages, module.stages[0]):
                return module
    return None


def _leave_out_dropout(model: nn.Module) -> None:
    """Dropout does nothing in inference but cost a call."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            replace_module(model, name, nn.Identity())


def _with_classifier(model: CondenseNetTrunk, head: Head, made: NativeClassifier) -> nn.Module:
    """The model with all in front of its classifier as one operator, beside trunk and head for who asks for them."""
    _put_head(model, head, made.head)
    _defer_stem(model)
    for name, module in dict(stages=made.trunk, norm=nn.Identity(), fused=made.whole).items():
        setattr(model, name, module)
    return model


def _put_head(model: CondenseNetTrunk, head: Head, module: nn.Module) -> None:
    """Pooling, squeeze-and-excitation and the linear layer behind them as one operator, in place of the pooling."""
    names = {module: name for name, module in model.named_modules()}
    replace_module(model, names[head.pool], module)
    for replaced in head[1:]:
        replace_module(model, names[replaced], nn.Identity())

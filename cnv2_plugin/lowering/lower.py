"""Putting the fastest exact form into a model: its parts described, rewritten, and put back as modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Optional, Union

import torch
from torch import Tensor, nn

from ..kernels.library import load
from ..layers import SqueezeExcite
from ..models import CondenseNetTrunk, ShuffleNetTrunk
from ..models.condense import condense
from .describe import DESCRIBERS, describe, is_chain_of_stages
from .forms import with_forms
from .graph import Graph, pair
from .module import LoweredGraph, PooledSqueezeExcite
from .native import DeferredConv2d, NativeStages, native
from .rewrites import clean_up
from .table import LAST_REWRITES, MAX_GROWTH, default_choices


@dataclass(frozen=True)
class Part:
    """A part of a model that can be lowered.

    Attributes:
        name: of the module.
        module: condensed module.
        input_shape: ``(N, C, H, W)`` that it was given.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]


def lower(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    runtime: str = 'onnxruntime',
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
    max_growth: Optional[float] = None,
) -> nn.Module:
    """The condensed model with every layer in the form that runs fastest, computing the same.

    Stages of our trunks are lowered as a whole, all of them together where nothing reads what is between them; in
    other models every group-sparse layer is lowered by itself. The result takes any batch and image size, is for
    inference only, and suits eager use, ``torch.compile`` and ``torch.export``; :func:`lowered_forms` lists what was
    chosen.

    Args:
        model: classifier, backbone or any module, finished; left as it is.
        input_size: ``(C, H, W)`` that the choice is made for.
        runtime: whose table of forms is used; ``'native'`` puts what the native kernels compute into them and the rest
            into the forms for ONNX Runtime.
        choices: form by layer name, overriding the table; see :func:`cnv2_plugin.deploy.tune`.
        example: input to find the shapes with, for models that do not take ``(1, *input_size)``.
        max_growth: share of the condensed parameters by which zeros filled in may enlarge the model; where the table's
            choice would go beyond, the layers that add most keep their groups. Layers in ``choices`` are not asked.
            By default what the runtime's table says.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere.
        ValueError: unknown runtime, layer or form, or a native form of a model that is not float32 on the CPU.
        KernelsMissingError: ``'native'``, and the kernels are not built.
    """
    if runtime == 'native':
        return _native(model, input_size, choices, example)
    lowered = _restate_squeeze_excite(condense(model).eval())
    choices = dict(choices or {})
    found = parts(lowered, input_size, example)
    allowance = (MAX_GROWTH.get(runtime, 0) if max_growth is None else max_growth) * sum(
        p.numel() for p in lowered.parameters()
    )
    for part in found:
        graph = describe(part.module, part.input_shape[1])
        wanted = default_choices(graph, pair(part.input_shape[2:]), runtime)
        asked = {
            site: choices.pop(layer_name(part.name, site)) for site in wanted if layer_name(part.name, site) in choices
        }
        rewritten, taken = _within(allowance, graph, wanted, asked)
        allowance -= rewritten.parameters() - graph.parameters()
        if runtime in LAST_REWRITES:
            clean_up(rewritten, [LAST_REWRITES[runtime]])
        module = LoweredGraph(rewritten, *_dtype_device(part.module))
        module.choices = taken
        lowered = _put(lowered, part.name, module)
    if choices:
        raise ValueError(f'choices name layers that the model does not have: {", ".join(sorted(choices)[:4])}.')
    return lowered


def _native(
    model: nn.Module,
    input_size: tuple[int, int, int],
    choices: Optional[Mapping[str, str]],
    example: Optional[Tensor],
) -> nn.Module:
    load()
    if choices:
        raise ValueError('choices are forms out of standard operators; leave them out with the native kernels.')
    dtype, device = _dtype_device(model)
    if (dtype, device) != (torch.float32, torch.device('cpu')):
        raise ValueError(
            f'the model is {dtype} on {device}; the native kernels take float32 on the CPU, so convert it with '
            f'.float().cpu(), or take another runtime.'
        )
    lowered, found = condense(model).eval(), 0
    for part in parts(lowered, input_size, example):
        trunk = _trunk_that_begins_with(lowered, part.module)
        module = None if trunk is None else native(part.module, part.input_shape[1], trunk.stem)
        if trunk is not None and module is not None:
            trunk.add_module('stem', _deferred(trunk.stem))
        else:
            module = native(part.module, part.input_shape[1])
        if module is not None:
            found += 1
            lowered = _put(lowered, part.name, module)
    if not found:
        raise ValueError(
            'the native kernels compute no part of this model (they know ReLU, ReLU6 and hard-swish, batch '
            'normalisation and 3x3 convolutions); take another runtime.'
        )
    return lower(lowered, input_size, example=example)


def _trunk_that_begins_with(model: nn.Module, part: nn.Module) -> Union[CondenseNetTrunk, ShuffleNetTrunk, None]:
    """The trunk of our own whose stem feeds a part of it and nothing else."""
    for module in model.modules():
        if isinstance(module, (CondenseNetTrunk, ShuffleNetTrunk)):
            if part in (module.stages, module.stages[0]):
                return module
    return None


def _deferred(stem: nn.Module) -> nn.Module:
    """A stem that passes images on, because the stages' kernels compute it."""
    return DeferredConv2d(next(module for module in stem.modules() if isinstance(module, nn.Conv2d)))


def _within(
    allowance: float, graph: Graph, wanted: Mapping[str, str], asked: Mapping[str, str]
) -> tuple[Graph, dict[str, str]]:
    """The graph in the wanted forms, or as many of them as add no more than ``allowance`` parameters."""
    forms = {**wanted, **asked}
    rewritten, taken = with_forms(graph, forms)
    excess = rewritten.parameters() - graph.parameters() - allowance
    if excess <= 0 or len(asked) == len(forms):
        return rewritten, taken
    least = with_forms(graph, {})[0].parameters()
    added = {
        site: with_forms(graph, {site: forms[site]})[0].parameters() - least for site in wanted if site not in asked
    }
    for site in sorted(added, key=added.__getitem__, reverse=True):
        if excess > 0 and added[site] > 0:
            del forms[site]
            excess -= added[site]
    return with_forms(graph, forms)


def parts(
    condensed: nn.Module, input_size: tuple[int, int, int], example: Optional[Tensor] = None, whole: bool = True
) -> list[Part]:
    """The parts of a condensed model that can be lowered, with the shapes they are given.

    Parts that take no part in ``forward`` are left out; where one is used several times, the largest input counts.

    Args:
        condensed: the model.
        input_size: ``(C, H, W)``.
        example: input to run it on instead of zeros of that size.
        whole: make one part of all stages where nothing reads what is between them.
    """
    calls: dict[nn.Module, list[tuple[int, ...]]] = {}
    names = {module: name for name, module in condensed.named_modules()}
    wanted = [m for m in names if isinstance(m, tuple(DESCRIBERS)) or is_chain_of_stages(m)]
    hooks = [m.register_forward_hook(lambda m, inputs, _: calls.setdefault(m, []).append(tuple(inputs[0].shape)))
             for m in wanted]  # fmt: skip
    if example is None:
        dtype, device = _dtype_device(condensed)
        example = torch.zeros(1, *input_size, dtype=dtype, device=device)
    try:
        with torch.no_grad():
            condensed(example)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[Part] = []
    inside: set[nn.Module] = set()
    for module, shapes in sorted(calls.items(), key=lambda item: len(names[item[0]])):
        chain = is_chain_of_stages(module)
        if module in inside or chain and not (whole and all(len(calls[m]) == len(shapes) for m in module.children())):
            continue
        inside.update(module.modules())
        found.append(Part(names[module], module, max(shapes, key=prod)))
    return sorted(found, key=lambda part: list(names.values()).index(part.name))


def lowered_forms(model: nn.Module) -> dict[str, str]:
    """The chosen form of every layer of a lowered model that offers several."""
    return {
        layer_name(name, site): form
        for name, module in model.named_modules()
        if isinstance(module, (LoweredGraph, NativeStages))
        for site, form in module.choices.items()
    }


def layer_name(part: str, site: str) -> str:
    """Name in the model of a site in one of its parts."""
    return f'{part}.{site}'.strip('.')


def _restate_squeeze_excite(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module) is SqueezeExcite:
            model = _put(model, name, PooledSqueezeExcite(module).eval())
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)
    return model


def _dtype_device(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    weight = next(module.parameters(), None)
    return (torch.float32, torch.device('cpu')) if weight is None else (weight.dtype, weight.device)

"""Putting the fastest exact implementation into a model: graph -> choice -> rewrites -> module, part by part."""

from collections.abc import Mapping
from typing import Optional

from torch import Tensor, nn

from ..graph.builder import to_graph
from ..graph.choice import MAX_GROWTH, RUNTIME_WORKAROUNDS, choose
from ..graph.implementations import implement
from ..graph.model_parts import layer_name, parts, replace_module
from ..graph.module import LoweredGraph, PooledSqueezeExcite
from ..graph.ops import dtype_device, pair
from ..graph.rewrites import clean_up
from ..kernels.native_model import NativeStages, native_model
from ..layers import SqueezeExcite
from ..models.condense import condense
from ..models.modes import in_eval


def lower(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    runtime: str = 'onnxruntime',
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
    max_growth: Optional[float] = None,
) -> nn.Module:
    """Return the condensed model with every layer in the implementation that runs fastest, computing the same.

    Stages of our trunks are lowered as a whole, all of them together where nothing reads what is between them; in
    other models every group-sparse layer is lowered by itself. The result takes any batch and image size, is for
    inference only, and suits eager use, ``torch.compile`` and ``torch.export``; :func:`lowered_forms` lists what was
    chosen.

    Args:
        model: classifier, backbone or any module, finished; left as it is.
        input_size: ``(C, H, W)`` that the choice is made for.
        runtime: whose rules choose; ``'native'`` puts what the native kernels compute into them and lowers the rest
            for ONNX Runtime.
        choices: implementation by layer name, in place of the one that the rules choose.
        example: input to find the shapes with, for models that do not take ``(1, *input_size)``.
        max_growth: share of the condensed parameters by which zeros filled in may enlarge the model; where the rules
            would go beyond, the layers that add most keep their groups, but for those in ``choices``. By default
            what ``cnv2_plugin.graph.choice.MAX_GROWTH`` says for the runtime.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere.
        ValueError: unknown runtime, layer or implementation, or native kernels for a model that is not float32 on the
            CPU.
        KernelsMissingError: ``'native'``, and the kernels are not built.
    """
    choices = dict(choices or {})
    if runtime == 'native':
        lowered = native_model(model, input_size, choices, example)
        runtime, choices = 'onnxruntime', {}
    else:
        lowered = in_eval(condense(model))
    lowered = _restate_squeeze_excite(lowered)
    share = MAX_GROWTH.get(runtime, 0) if max_growth is None else max_growth
    allowance = share * sum(p.numel() for p in lowered.parameters())
    for part in parts(lowered, input_size, example):
        graph = to_graph(part.module, part.input_shape[1])
        names = {node.layer: layer_name(part.name, node.layer) for node in graph.layers()}
        asked = {layer: choices.pop(name) for layer, name in names.items() if name in choices}
        chosen = choose(graph, pair(part.input_shape[2:]), runtime, asked, allowance)
        rewritten, taken = implement(graph, chosen)
        allowance -= rewritten.parameters() - graph.parameters()
        if runtime in RUNTIME_WORKAROUNDS:
            clean_up(rewritten, [RUNTIME_WORKAROUNDS[runtime]])
        module = LoweredGraph(rewritten, *dtype_device(part.module))
        module.choices = taken
        lowered = replace_module(lowered, part.name, module)
    if choices:
        raise ValueError(f'choices name layers that the model does not have: {", ".join(sorted(choices)[:4])}.')
    return lowered


def lowered_forms(model: nn.Module) -> dict[str, str]:
    """Return the implementation of every layer of a lowered model that offers several."""
    return {
        layer_name(name, layer): implementation
        for name, module in model.named_modules()
        if isinstance(module, (LoweredGraph, NativeStages))
        for layer, implementation in module.choices.items()
    }


def _restate_squeeze_excite(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module) is SqueezeExcite:
            model = replace_module(model, name, PooledSqueezeExcite(module).eval())
    return model

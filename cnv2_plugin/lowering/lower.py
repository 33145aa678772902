"""Putting the fastest exact form into a model: its parts described, rewritten, and put back as modules."""

from collections.abc import Mapping
from typing import Optional

from torch import Tensor, nn

from ..layers import SqueezeExcite
from ..models.condense import condense
from .describe import describe
from .forms import with_forms
from .graph import Graph, pair
from .module import LoweredGraph, PooledSqueezeExcite
from .native import NativeStages
from .native_model import native_model
from .parts import dtype_device, layer_name, parts, put
from .rewrites import clean_up
from .table import LAST_REWRITES, MAX_GROWTH, default_choices


def lower(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    runtime: str = 'onnxruntime',
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
    max_growth: Optional[float] = None,
    processor: Optional[str] = None,
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
        processor: whose table of forms is used, ``'avx2'`` or ``'avx512'``; that of this machine by default.

    Raises:
        UnfinishedPruningError: pruning is not finished somewhere.
        ValueError: unknown runtime, processor, layer or form, or a native form of a model that is not float32 on the
            CPU.
        KernelsMissingError: ``'native'``, and the kernels are not built.
    """
    if runtime == 'native':
        return lower(
            native_model(model, input_size, choices, example), input_size, example=example, processor=processor
        )
    lowered = _restate_squeeze_excite(condense(model).eval())
    choices = dict(choices or {})
    found = parts(lowered, input_size, example)
    allowance = (MAX_GROWTH.get(runtime, 0) if max_growth is None else max_growth) * sum(
        p.numel() for p in lowered.parameters()
    )
    for part in found:
        graph = describe(part.module, part.input_shape[1])
        wanted = default_choices(graph, pair(part.input_shape[2:]), runtime, processor)
        asked = {
            site: choices.pop(layer_name(part.name, site)) for site in wanted if layer_name(part.name, site) in choices
        }
        rewritten, taken = _within(allowance, graph, wanted, asked)
        allowance -= rewritten.parameters() - graph.parameters()
        if runtime in LAST_REWRITES:
            clean_up(rewritten, [LAST_REWRITES[runtime]])
        module = LoweredGraph(rewritten, *dtype_device(part.module))
        module.choices = taken
        lowered = put(lowered, part.name, module)
    if choices:
        raise ValueError(f'choices name layers that the model does not have: {", ".join(sorted(choices)[:4])}.')
    return lowered


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


def lowered_forms(model: nn.Module) -> dict[str, str]:
    """The chosen form of every layer of a lowered model that offers several."""
    return {
        layer_name(name, site): form
        for name, module in model.named_modules()
        if isinstance(module, (LoweredGraph, NativeStages))
        for site, form in module.choices.items()
    }


def _restate_squeeze_excite(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module) is SqueezeExcite:
            model = put(model, name, PooledSqueezeExcite(module).eval())
    return model

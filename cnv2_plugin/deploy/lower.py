"""Putting the fastest exact implementation into a model: graph -> choice -> rewrites -> module, part by part."""

from collections.abc import Mapping
from math import inf
from typing import Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..graph.builder import is_plain_squeeze_excite, to_graph
from ..graph.choice import MAX_GROWTH, RUNTIME_WORKAROUNDS, choose
from ..graph.implementations import clean_up, implement
from ..graph.model_parts import layer_name, parts, replace_module
from ..graph.module import LoweredGraph, PooledSqueezeExcite
from ..graph.ops import dtype_device, pair
from ..kernels.native_model import NativeStages, native_model
from ..layers import SqueezeExcite
from ..models.condense import condense
from ..models.modes import evaluating, in_eval
from .calibration import TIES, Images, calibrated, check_noise, rounded
from .verify import VerificationError


def lower(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 224, 224),
    runtime: str = 'onnxruntime',
    choices: Optional[Mapping[str, str]] = None,
    example: Optional[Tensor] = None,
    max_growth: Optional[float] = None,
    verify: bool = True,
    int8: Optional[Images] = None,
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
        verify: compare the result with the model once, on ``example`` or a random image, before it is returned.
        int8: with ``'native'``, batches of images: convolutions compute in bytes, with limits found on these, and
            layers that read one pixel, such as the classifier, have weights of bytes. That is not exact; it is compared
            with the same rounding in PyTorch, and refused where it changes the outputs by more than
            ``cnv2_plugin.deploy.calibration.MOST_NOISE`` of what they vary.

    Raises:
        UnknownModuleError: a layer does more than its class says, so that condensing it could not be proven exact.
        VerificationError: the result computes something else, or the model gives NaN or infinite values.
        UnfinishedPruningError: pruning is not finished somewhere.
        ValueError: unknown runtime, layer or implementation, or native kernels for a model that is not float32 on the
            CPU.
        KernelsMissingError: ``'native'``, and the kernels are not built.
    """
    if int8 is not None:
        if runtime != 'native' or choices:
            raise ValueError('int8 is for the runtime native, without choices; see quantize_onnx for other files.')
        return lower_int8(model, input_size, int8, example, max_growth, verify)[0]
    choices = dict(choices or {})
    if runtime == 'native':
        lowered = native_model(model, input_size, choices, example)
        runtime, choices = 'onnxruntime', {}
    else:
        lowered = in_eval(condense(model))
    for name, module in list(lowered.named_modules()):
        if isinstance(module, SqueezeExcite) and is_plain_squeeze_excite(module):
            lowered = replace_module(lowered, name, PooledSqueezeExcite(module).eval())
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
    if verify:
        _check_same(model, lowered, input_size, example)
    return lowered


def lower_int8(
    model: nn.Module,
    input_size: tuple[int, int, int],
    images: Images,
    example: Optional[Tensor] = None,
    max_growth: Optional[float] = None,
    verify: bool = True,
) -> tuple[nn.Module, nn.Module]:
    """Return the native form in int8, and what it computes in PyTorch; see :func:`lower`."""
    marked = calibrated(model, images)
    lowered = lower(marked, input_size, 'native', example=example, max_growth=max_growth, verify=False)
    reference = rounded(marked, lowered)
    if verify:
        check_noise(marked, reference, images)
        _check_same(reference, lowered, input_size, example, TIES)
    return lowered, reference


@torch.no_grad()
def _check_same(
    model: nn.Module,
    lowered: nn.Module,
    input_size: tuple[int, int, int],
    example: Optional[Tensor],
    rounding: float = 1e-4,
) -> None:
    """Raise unless both give the same, up to rounding in the precision that they compute in."""
    dtype, device = dtype_device(model)
    random = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    images = random.to(device, dtype) if example is None else example
    with evaluating(model):
        expected, actual = (
            [leaf for leaf in tree_flatten(form(images.clone()))[0] if isinstance(leaf, Tensor)]
            for form in (model, lowered)
        )
    if [leaf.shape for leaf in expected] != [leaf.shape for leaf in actual]:
        raise VerificationError('the lowered model gives outputs of other shapes than the model; nothing was lowered.')
    tolerance = rounding if device.type == 'cpu' and dtype.itemsize >= 4 else 0.05
    for number, (a, b) in enumerate(zip(expected, actual)):
        if not a.numel() or not a.is_floating_point():
            continue
        difference, scale = (a.double() - b.double()).abs().max().item(), a.double().abs().max().item()
        if not difference <= tolerance * scale < inf:
            what = 'has NaN or infinite values' if not scale < inf else f'is off by {difference:.3g} of {scale:.3g}'
            raise VerificationError(
                f'output {number} of the lowered model {what} on a test image; give an example that the model is made '
                f'for, or pass verify=False and compare the two on images of your own.'
            )


def lowered_forms(model: nn.Module) -> dict[str, str]:
    """Return the implementation of every layer of a lowered model that offers several."""
    return {
        layer_name(name, layer): implementation
        for name, module in model.named_modules()
        if isinstance(module, (LoweredGraph, NativeStages))
        for layer, implementation in module.choices.items()
    }

"""Proof that two forms of one model compute the same."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional, Union

import torch
from torch import Tensor, nn

from ..kernels.native_model import NativeStages
from ..layers import GroupSparseConv2d
from ..models.modes import evaluating

Outputs = Union[Tensor, Sequence[Tensor]]
Runnable = Union[nn.Module, Callable[[Tensor], Outputs], str, Path]

SCALES = (1.0, 1000.0)
"""Standard deviations of the images: what saturates or is lost beside a large bias at one shows at the other."""

ROUNDING = 1e6
"""Weight of rounding errors beside a channel's variation: ten times those of the reference are 1e-5."""

SAMPLES = 8
"""Rows and columns of a module's output that are compared, so that large images take no more memory."""


class VerificationError(RuntimeError):
    """Two forms of a model differ by more than the tolerance."""


@dataclass(frozen=True)
class VerifyReport:
    """How far a candidate is from its reference.

    Attributes:
        max_abs: largest absolute difference of the outputs.
        max_rel: largest difference of a channel over how much the channel varies, of all outputs and, where both forms
            are modules, of all modules that they have in common.
        argmax_agreement: share of positions whose largest channel is the same.
        num_inputs: images compared.
        where: the output or module of ``max_rel``.
        fault: what is NaN or infinite, and in which module it appears first; empty where all is finite.
    """

    max_abs: float
    max_rel: float
    argmax_agreement: float
    num_inputs: int
    where: str = ''
    fault: str = ''

    def check(self, tolerance: float, what: str = 'the candidate') -> None:
        """Raise unless all is finite and the relative difference is within ``tolerance``.

        Raises:
            VerificationError: it is not.
        """
        if self.fault:
            raise VerificationError(f'{what} cannot be compared: {self.fault}; nothing was written.')
        if not self.max_rel <= tolerance:
            raise VerificationError(
                f'{what} differs from the reference by {self.max_rel:.3g} of what {self.where} varies '
                f'({self.max_abs:.3g} absolute in the outputs), above the tolerance {tolerance:g}; nothing was written.'
            )


def verify(
    reference: Runnable,
    candidate: Runnable,
    input_size: tuple[int, int, int] = (3, 224, 224),
    num_inputs: int = 4,
    batch_size: int = 1,
    seed: int = 0,
    dtype: Optional[torch.dtype] = None,
    exact: bool = False,
) -> VerifyReport:
    """Compare two forms of a model on random normal images of several scales.

    Differences are taken for each channel over how much that channel varies, so that a large bias or output hides
    nothing. Modules are run in float64, where rounding hides nothing either, and the output of every module that both
    have under one name is compared as well. Errors of rounding are known from the reference in both precisions, or
    from images with other last bits where it runs in its own type only, as native stages and ONNX files do.

    Args:
        reference: module, callable, or path of an ONNX file.
        candidate: likewise; modules are run in eval mode and left as they were.
        input_size: ``(C, H, W)``.
        num_inputs: batches to compare; half of them of each scale.
        batch_size: images in a batch.
        seed: of the images.
        dtype: of the images; by default that of the modules, else float32.
        exact: the candidate holds the very weights of the reference, none folded and rounded anew, so that in float64
            both agree to the rounding errors of float64.

    Raises:
        ValueError: ``input_size``, ``num_inputs`` or ``batch_size`` does not fit.
        VerificationError: the forms give outputs of different numbers or shapes.
    """
    if len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(f'input_size is {tuple(input_size)}; it takes three positive numbers (C, H, W).')
    if num_inputs < 1 or batch_size < 1:
        raise ValueError(f'num_inputs is {num_inputs} and batch_size {batch_size}; both take at least 1.')
    comparison = _Comparison(reference, candidate, dtype or _dtype_of(reference) or _dtype_of(candidate), exact)
    generator = torch.Generator().manual_seed(seed)
    scales = SCALES if comparison.dtype in (torch.float32, torch.float64) else SCALES[:1]
    for i, scale in enumerate(scales):
        count = (num_inputs - i + len(scales) - 1) // len(scales)
        size = (batch_size, *input_size)
        images = [scale * torch.randn(*size, generator=generator, dtype=torch.float64) for _ in range(count)]
        comparison.add(images, needed=i == 0)
    return comparison.report(num_inputs * batch_size)


def check_takes(form: Runnable, input_size: tuple[int, int, int], name: str) -> None:
    """Raise a ValueError where a model of that name cannot compute images of a size."""
    try:
        as_runner(form)(torch.zeros(1, *input_size, dtype=_dtype_of(form)))
    except RuntimeError as error:
        raise ValueError(
            f'{name} cannot compute images (C, H, W) of {tuple(input_size)}; give another size (--input C H W). '
            f'({str(error).splitlines()[0]})'
        ) from error


class _Comparison:
    """What was found so far."""

    def __init__(self, reference: Runnable, candidate: Runnable, dtype: Optional[torch.dtype], exact: bool) -> None:
        self.dtype = dtype or torch.float32
        self.precise = _in_float64(reference)
        self.precise_candidate = None if self.precise is None else _in_float64(candidate)
        self.reference, self.candidate = as_runner(reference), as_runner(candidate)
        both = self.precise_candidate is not None
        self.rounding = torch.float64 if both and exact else self.dtype
        self.common = _common_modules(self.precise, self.precise_candidate)
        self.max_abs, self.max_rel, self.where, self.fault = 0.0, 0.0, 'the output', ''
        self.same, self.positions = 0, 0

    def add(self, images: list[Tensor], needed: bool) -> None:
        """Compare images of one scale; that the reference is not finite on them is a fault if they are needed."""
        results = []
        for x in images:
            rounded = x.to(self.dtype)
            plain = self.reference(rounded)
            features: dict[str, Tensor] = {}
            if self.precise is None:
                expected, plain = plain, self.reference(_last_bits_changed(rounded))
            else:
                features, expected = _run_with(self.precise, self.common, rounded.double())
            if not all(_finite(output) for output in expected):
                if needed:
                    first = next((name for name, value in features.items() if not _finite(value)), 'the output')
                    self.fault = f'the reference gives NaN or infinity on random images, first in {first}'
                return
            if self.precise_candidate is None:
                actual = self.candidate(rounded)
            else:
                found, actual = _run_with(self.precise_candidate, self.common, rounded.double())
                self._compare_features(features, found)
            if len(expected) != len(actual):
                raise VerificationError(f'the reference has {len(expected)} outputs, the candidate {len(actual)}.')
            for a, b in zip(expected, actual):
                if a.shape != b.shape:
                    raise VerificationError(f'the reference gives {tuple(a.shape)}, the candidate {tuple(b.shape)}.')
            results.append((plain, expected, actual))
        for i in range(len(results[0][0]) if results else 0):
            whole = [torch.cat([result[form][i] for result in results]).double() for form in range(3)]
            self._compare_outputs(f'output {i}', *whole)

    def report(self, num_inputs: int) -> VerifyReport:
        agreement = self.same / self.positions if self.positions else float('nan')
        return VerifyReport(self.max_abs, self.max_rel, agreement, num_inputs, self.where, self.fault)

    def _compare_features(self, features: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        for name, expected in features.items():
            if name not in found or expected.shape != found[name].shape:
                continue
            if not _finite(found[name]) and _finite(expected) and not self.fault:
                self.fault = f'the candidate gives NaN or infinity on random images, first in {name}'
            self._note(f'a channel of {name}', relative_difference(expected, found[name], self.rounding))

    def _compare_outputs(self, name: str, plain: Tensor, expected: Tensor, actual: Tensor) -> None:
        if not _finite(actual) and not self.fault:
            self.fault = f'the candidate gives NaN or infinity on random images, in {name}'
        if not expected.numel():
            return
        noise = None if self.rounding == torch.float64 else plain - expected
        self.max_abs = _worse(self.max_abs, (expected - actual).abs().max().item())
        self._note(f'a channel of {name}', relative_difference(expected, actual, self.rounding, noise))
        if expected.ndim > 1:
            self.same += int((expected.argmax(1) == actual.argmax(1)).sum())
            self.positions += expected.argmax(1).numel()

    def _note(self, where: str, difference: float) -> None:
        if _worse(self.max_rel, difference) != self.max_rel:
            self.max_rel, self.where = difference, where


def relative_difference(expected: Tensor, actual: Tensor, dtype: torch.dtype, noise: Optional[Tensor] = None) -> float:
    """Largest difference of a channel over how much it varies, plus the rounding errors of the reference itself."""
    expected, actual = _channels(expected), _channels(actual)
    difference = (expected - actual).abs().amax(1)
    alone = expected.shape[1] == 1
    mean = expected.mean() if alone else expected.mean(1, keepdim=True)
    variation = (expected - mean).abs().amax(1)
    rounding = torch.finfo(dtype).eps * expected.abs().amax(1)
    if noise is None and len(rounding):
        rounding = rounding.clamp(min=rounding.median())  # activations cut off most of what was rounded
    elif noise is not None:
        own = _channels(noise).abs().amax(1)
        rounding = torch.maximum(rounding, own.clamp(min=3 * own.median()))
    scale = (variation.max() if alone else variation) + ROUNDING * rounding
    relative = torch.where(difference == 0, 0.0, difference / scale)
    return relative.max().item() if relative.numel() else 0.0


def _last_bits_changed(x: Tensor) -> Tensor:
    """Images that round to one place higher or lower, as what is computed from them in any other order does."""
    signs = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x * (1 + torch.finfo(x.dtype).eps * signs).to(x)


def _channels(x: Tensor) -> Tensor:
    """``(C, positions)`` in float64."""
    x = x.double()
    return x.transpose(0, 1).flatten(1) if x.ndim > 1 else x.reshape(1, -1)


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _worse(a: float, b: float) -> float:
    """The larger one; NaN, which compares false with everything, is the worst."""
    return a if a >= b or a != a else b


def _dtype_of(form: Runnable) -> Optional[torch.dtype]:
    parameters = form.parameters() if isinstance(form, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)


def _in_float64(form: Runnable) -> Optional[nn.Module]:
    """A copy of a module in float64; None for what computes in its own type only."""
    if not isinstance(form, nn.Module) or any(isinstance(module, NativeStages) for module in form.modules()):
        return None
    return deepcopy(form).double()


def _common_modules(reference: Optional[nn.Module], candidate: Optional[nn.Module]) -> list[str]:
    """Names under which both have a module of one class, outside of group-sparse layers, whose insides differ."""
    if reference is None or candidate is None:
        return []
    layers = (name for name, module in reference.named_modules() if isinstance(module, GroupSparseConv2d))
    sparse = [name and f'{name}.' for name in layers]
    others = dict(candidate.named_modules())
    return [
        name
        for name, module in reference.named_modules()
        if name and type(others.get(name)) is type(module) and not name.startswith(tuple(sparse))
    ]


def _run_with(model: nn.Module, names: Sequence[str], x: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Samples of what modules of these names give, and the outputs of the model."""
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            for dim in range(2, output.ndim):
                output = output[(slice(None),) * dim + (slice(None, None, max(output.shape[dim] // SAMPLES, 1)),)]
            found[name] = output.clone()

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(keep, name)))
        return found, as_runner(model)(x)


def as_runner(form: Runnable) -> Callable[[Tensor], list[Tensor]]:
    """A function from images to a list of outputs, for a module, a callable or an ONNX file."""
    if isinstance(form, (str, Path)):
        from .runtimes.onnxruntime import load

        return load(Path(form))

    def run(x: Tensor) -> list[Tensor]:
        with evaluating(form) if isinstance(form, nn.Module) else nullcontext(), torch.no_grad():
            outputs = form(x)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run

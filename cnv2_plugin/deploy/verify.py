"""Proof that two forms of one model compute the same."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import torch
from torch import Tensor, nn

from ..models.modes import evaluating

Outputs = Union[Tensor, Sequence[Tensor]]
Runnable = Union[nn.Module, Callable[[Tensor], Outputs], str, Path]


class VerificationError(RuntimeError):
    """Two forms of a model differ by more than the tolerance."""


@dataclass(frozen=True)
class VerifyReport:
    """How far a candidate is from its reference.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: largest absolute difference over the largest absolute reference value, the worst of all outputs.
        argmax_agreement: share of positions whose largest channel is the same.
        num_inputs: images compared.
    """

    max_abs: float
    max_rel: float
    argmax_agreement: float
    num_inputs: int

    def check(self, tolerance: float, what: str = 'the candidate') -> None:
        """Raise unless the relative difference is within ``tolerance``.

        Raises:
            VerificationError: it is not.
        """
        if not self.max_rel <= tolerance:
            raise VerificationError(
                f'{what} differs from the reference by {self.max_rel:.3g} relative ({self.max_abs:.3g} absolute), '
                f'above the tolerance {tolerance:g}; nothing was written.'
            )


def verify(
    reference: Runnable,
    candidate: Runnable,
    input_size: tuple[int, int, int] = (3, 224, 224),
    num_inputs: int = 4,
    batch_size: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> VerifyReport:
    """Compare two forms of a model on random normal images.

    Args:
        reference: module, callable, or path of an ONNX file.
        candidate: likewise; modules are run in eval mode and left as they were.
        input_size: ``(C, H, W)``.
        num_inputs: batches to compare.
        batch_size: images in a batch.
        seed: of the images.
        dtype: of the images.

    Raises:
        ValueError: ``input_size``, ``num_inputs`` or ``batch_size`` does not fit.
        VerificationError: the forms give outputs of different numbers or shapes.
    """
    if len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(f'input_size is {tuple(input_size)}; it takes three positive numbers (C, H, W).')
    if num_inputs < 1 or batch_size < 1:
        raise ValueError(f'num_inputs is {num_inputs} and batch_size {batch_size}; both take at least 1.')
    run_reference, run_candidate = as_runner(reference), as_runner(candidate)
    generator = torch.Generator().manual_seed(seed)
    max_abs, max_rel, same, positions = 0.0, 0.0, 0, 0
    for _ in range(num_inputs):
        x = torch.randn(batch_size, *input_size, generator=generator, dtype=dtype)
        expected, actual = run_reference(x), run_candidate(x)
        if len(expected) != len(actual):
            raise VerificationError(f'the reference has {len(expected)} outputs, the candidate {len(actual)}.')
        for a, b in zip(expected, actual):
            if a.shape != b.shape:
                raise VerificationError(f'the reference gives {tuple(a.shape)}, the candidate {tuple(b.shape)}.')
            difference = (a.double() - b.double()).abs().max().item()
            max_abs = _worse(max_abs, difference)
            max_rel = _worse(max_rel, difference / max(a.abs().max().item(), 1e-30))
            same += int((a.argmax(1) == b.argmax(1)).sum())
            positions += a.argmax(1).numel()
    return VerifyReport(max_abs, max_rel, same / positions, num_inputs * batch_size)


def _worse(a: float, b: float) -> float:
    """The larger one; NaN, which compares false with everything, is the worst."""
    return a if a >= b or a != a else b


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

"""Finished networks in single and double precision, for comparing with the native form."""

import timm
import torch
from torch import Tensor, nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.deploy import lower
from cnv2_plugin.kernels.native_model import NativeStages
from tests.helpers import finish_pruning, randomize_norms, relative_difference


def finished(name: str, seed: int = 0, **options) -> nn.Module:
    """A timm model with random statistics and finished masks, in the masked form."""
    torch.manual_seed(seed)
    return finish_pruning(randomize_norms(timm.create_model(name, **options), seed)).eval()


def native_form(model: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """The native form, in which at least one part really runs in the kernels."""
    native = lower(model, size, 'native')
    assert any(isinstance(module, NativeStages) for module in native.modules())
    return native


def differs(native: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Largest relative difference of any output to the masked form in float64."""
    with torch.no_grad():
        expected, actual = model.double()(x.double()), native(x)
    model.float()
    if isinstance(expected, Tensor):
        expected, actual = [expected], [actual]
    assert [a.shape for a in actual] == [e.shape for e in expected]
    return max((relative_difference(a.double(), e) for a, e in zip(actual, expected)), default=0.0)

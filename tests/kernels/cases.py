"""Finished networks in single and double precision, for comparing with the native form.

CNV2_TEST_KERNELS names the library of another build, such as one made with sanitizers.
"""

import os
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import cnv2_plugin  # noqa: F401
from cnv2_plugin.deploy import lower
from cnv2_plugin.kernels import library
from cnv2_plugin.kernels.native_model import NativeStages, native_program
from tests.helpers import finish_pruning, randomize_norms, relative_difference

if os.environ.get('CNV2_TEST_KERNELS'):
    library.FILE = Path(os.environ['CNV2_TEST_KERNELS'])
TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)


def finished(name: str, seed: int = 0, **options) -> nn.Module:
    """A timm model with random statistics and finished masks, in the masked form."""
    torch.manual_seed(seed)
    return finish_pruning(randomize_norms(timm.create_model(name, **options), seed)).eval()


def native(module: nn.Module, channels: int) -> NativeStages:
    """A condensed module in the kernels."""
    program = native_program([('', module)], channels)
    assert program is not None
    return NativeStages(program)


def in_bytes(module: nn.Module) -> nn.Module:
    """A condensed module whose convolutions and linear layers are computed in bytes by the kernels."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.input_limits = (-0.5, 4.0)
        elif isinstance(layer, nn.Linear):
            layer.input_limits = ()
    return module


def tiny_stages(seed: int = 0) -> tuple[nn.Module, NativeStages]:
    """A small trunk's stages in the condensed and in the native form."""
    model = finished('condensenetv2', seed, arch=TINY, num_classes=5)
    model.switch_to_deploy()
    return model.stages, native(model.stages, model.stem.out_channels)


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

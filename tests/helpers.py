"""Shared by the tests: models whose every statistic and gamma is random, and small archs."""

import random
import shutil
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

from cnv2_plugin.kernels import available
from cnv2_plugin.layers import GroupSparseConv2d


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch normalisation random statistics, and affine values of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            size = module.num_features
            values = torch.randn(3, size, generator=generator)
            module.running_mean.copy_(values[0] * 0.5)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(values[1].sign() * (values[1].abs() * 0.5 + 0.3))
                module.bias.copy_(values[2] * 0.3)
    return model


def finish_pruning(model: nn.Module) -> nn.Module:
    """Do every pruning stage of every layer."""
    for module in model.modules():
        if isinstance(module, GroupSparseConv2d) and not module.deploy:
            module.prune_to(module.num_stages)
    return model


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """``max|a - b| / max|b|``."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def installed(requirement: str) -> bool:
    """Whether a package is installed in one of these versions, such as ``timm<=1.0.9``."""
    wanted = Requirement(requirement)
    try:
        return version(wanted.name) in wanted.specifier
    except PackageNotFoundError:
        return False


def has_compiler() -> bool:
    """Whether a C++ compiler is on the path."""
    return any(map(shutil.which, ('g++', 'clang++', 'c++')))


def lacks_kernels() -> bool:
    """Whether the native kernels could not be built here; where a compiler is, they have to be there."""
    return not available() and not has_compiler()


def random_seeds(count: int, fast: int = 20) -> list:
    """Seeds as parameters of a test, of which all but some are slow."""
    return [seed if seed < fast else pytest.param(seed, marks=pytest.mark.slow) for seed in range(count)]


def random_arch(seed: int) -> dict:
    """A small CondenseNetV2 arch with ``G``, ``C`` and ``S`` all different."""
    rng = random.Random(seed)
    blocks = rng.randint(2, 3)
    g1, g3, gs = rng.choice([(2, 1, 4), (4, 2, 1), (3, 1, 3), (4, 4, 2), (1, 2, 4), (6, 3, 2)])
    base = {1: 4, 2: 4, 3: 6, 4: 4, 6: 6}[max(g3, gs)] if max(g3, gs) != 3 else 6
    unit = next(k for k in range(base, 64) if k % g3 == 0 and k % gs == 0 and 2 * k % g1 == 0)
    factors = rng.sample([2, 3, 4, 5, 7], 2)
    return dict(
        layers=[rng.randint(1, 3) for _ in range(blocks)],
        growth=[unit * rng.choice([1, 2]) for _ in range(blocks)],
        groups_1x1=g1, groups_3x3=g3, groups_sfr=gs, condense_factor=factors[0], sparse_factor=factors[1],
        bottleneck=rng.choice([2, 4]), se_from=rng.choice([None, 1, 2]), hswish_from=rng.choice([None, 1, 2]),
        head_width=rng.choice([None, 20]), stem_stride=rng.choice([1, 2]), se_reduction=rng.choice([1, 2]),
    )  # fmt: skip

"""Fingerprints of the state dicts of every network and layer in every form: keys, their order, shapes and dtypes.

``state_dicts.json`` beside this file holds those of the commit de5c46b, before each form got a file of its own. They
were written by this script, run on a checkout of that commit (where the restated form was elsewhere), as one line::

    PYTHONPATH=CHECKOUT python tests/layers/state_dict_fingerprint.py --restated cnv2_plugin.analysis.authors_form
    --out tests/layers/state_dicts.json
"""

import argparse
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import nn

import cnv2_plugin  # noqa: F401  registers the networks
from cnv2_plugin.layers import GroupSparseConv2d, LearnedGroupConv, SparseFeatureReactivation

NETWORKS = [
    'condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c', 'condensenet_74_g4', 'condensenet_74_g8',
    'sfr_shufflenetv2_x0_5', 'sfr_shufflenetv2_x1_0', 'sfr_shufflenetv2_x1_5', 'sfr_shufflenetv2_x2_0',
    'shufflenetv2_x0_5', 'shufflenetv2_x1_0', 'shufflenetv2_x1_5', 'shufflenetv2_x2_0',
    'condensenetv2_110_cifar', 'condensenetv2_146_cifar', 'condensenet_50_cifar', 'condensenet_74_cifar',
    'condensenet_86_cifar', 'condensenet_98_cifar', 'condensenet_110_cifar', 'condensenet_122_cifar',
]  # fmt: skip
LAYERS: dict[str, Callable[..., nn.Module]] = {
    'LearnedGroupConv(30, 24, 3, 4)': lambda **options: LearnedGroupConv(30, 24, 3, 4, **options),
    'SparseFeatureReactivation(24, 50, 4, 7)': lambda **options: SparseFeatureReactivation(24, 50, 4, 7, **options),
    'GroupSparseConv2d(30, 24, 3, 4, bias)': lambda **options: GroupSparseConv2d(30, 24, 3, 4, bias=True, **options),
    'GroupSparseConv2d(24, 50, 4, 7, inputs)': lambda **options: GroupSparseConv2d(24, 50, 4, 7, 'inputs', **options),
    'LearnedGroupConv(30, 24, 3, 1)': lambda **options: LearnedGroupConv(30, 24, 3, 1, **options),
}


def fingerprint(module: nn.Module) -> str:
    """Hash of the keys, shapes and dtypes of a module's state dict, in their order."""
    lines = [f'{key} {tuple(value.shape)} {value.dtype}' for key, value in module.state_dict().items()]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def sparse_layers(module: nn.Module) -> list[GroupSparseConv2d]:
    """All group-sparse layers of a module, itself included."""
    return [layer for layer in module.modules() if isinstance(layer, GroupSparseConv2d)]


def forms(build: Callable[..., nn.Module], restated: Callable[[nn.Module], nn.Module]) -> Iterator[tuple[str, str]]:
    """Name and fingerprint of every form: masked, restated, packed, masked again, condensed, built condensed."""
    model = build()
    yield 'masked', fingerprint(model)
    yield 'restated', fingerprint(restated(model))
    for layer in sparse_layers(model):
        layer.prune_to(layer.num_stages)
        layer.switch_to_packed()
    yield 'packed', fingerprint(model)
    for layer in sparse_layers(model):
        layer.switch_to_masked()
    yield 'masked again', fingerprint(model)
    for layer in sparse_layers(model):
        layer.switch_to_deploy()
    yield 'condensed', fingerprint(model)
    yield 'deploy=True', fingerprint(build(deploy=True))


def fingerprints(restated: Callable[[nn.Module], nn.Module]) -> dict[str, dict[str, str]]:
    """Of every network and layer, by form."""
    builders = {name: lambda name=name, **options: timm.create_model(name, **options) for name in NETWORKS}
    return {name: dict(forms(build, restated)) for name, build in {**builders, **LAYERS}.items()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--restated', default='tools.research.authors_form', help='module of the restated form')
    parser.add_argument('--out', required=True, type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    restated = importlib.import_module(args.restated).restated
    args.out.write_text(json.dumps(fingerprints(restated), indent=1) + '\n')

"""``cnv2 env``: what is there on this machine: packages, kernels, instruction set, runtimes."""

import argparse
import importlib.metadata
import platform

from ._output import print_table

PRINTS_TABLES = True
PACKAGES = {
    'toolkits': ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain'),
    'trainers': ('lightning', 'transformers'),
    'runtimes': ('onnxruntime', 'openvino', 'executorch', 'ncnn', 'coremltools'),
    'tools': ('onnx', 'onnxscript', 'safetensors', 'matplotlib', 'rich', 'tqdm'),
}
FORKS = {
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmpretrain': 'onedl-mmpretrain',
}
"""Maintained forks by the package whose modules they bring."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options of its own."""


def run(args: argparse.Namespace) -> None:
    """Print one table; nothing of what it names is imported but PyTorch."""
    from ..benchmark import machine
    from ..kernels import KernelsMissingError, built_for, instruction_set

    here = {'Python': platform.python_version(), **machine()}
    try:
        kernels = {'native kernels': 'built', 'instruction set': instruction_set(), 'built for': built_for()}
    except KernelsMissingError as error:
        kernels = {'native kernels': f'none: {error}'}
    rows = [['cnv2_plugin', 'version', _version('cnv2_plugin')]]
    rows += [['machine', name, str(value)] for name, value in here.items() if not isinstance(value, (dict, list))]
    rows += [['kernels', name, value] for name, value in kernels.items()]
    rows += [[kind, package, _version(package)] for kind, packages in PACKAGES.items() for package in packages]
    print_table('Environment', ['', 'what', 'found'], rows, args.markdown)


def _version(package: str) -> str:
    """Version of a package, or of the fork that brings the same modules."""
    for name in (package, FORKS.get(package)):
        try:
            if name:
                return importlib.metadata.version(name) + f' ({name})' * (name != package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return 'not installed'

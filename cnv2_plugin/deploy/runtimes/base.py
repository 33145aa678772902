"""The runtimes that models are exported to, and writing their files whole or not at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ... import __version__
from ...checkpoints.io import check_finite, check_folder, check_target, staged
from ..lower import lower, lowered_forms
from ..quantize import per_channel
from ..verify import VerifyReport, verify

Loaded = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Runtime:
    """A file format and the runtime that reads it.

    Attributes:
        name: as typed.
        suffixes: of the files that belong together; the first one is the name that users give.
        packages: Python packages that writing takes.
        table: whose rules choose implementations; see :mod:`cnv2_plugin.graph.choice`.
    """

    name: str
    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    table: str

    def module(self) -> ModuleType:
        """The module with ``write(lowered, path, example, metadata)`` and, where files run, ``load(path, threads)``.

        Raises:
            ImportError: a package is missing; tells how to get it.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            names = ' and '.join(missing)
            raise ImportError(f'{self.name} files take {names}; install with: pip install {" ".join(missing)}')
        return import_module(f'{__package__}.{self.name}')


@dataclass(frozen=True)
class RuntimeReport:
    """What was written.

    Attributes:
        runtime: name of the runtime.
        paths: files or folders written.
        size: their bytes.
        verification: the file run here against the given model, or None where it cannot be run here.
        forms: chosen form of every layer that offers several.
    """

    runtime: str
    paths: tuple[Path, ...]
    size: int
    verification: Optional[VerifyReport]
    forms: dict[str, str]


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime('openvino', ('.xml', '.bin'), ('openvino', 'onnx'), 'openvino'),
        Runtime('onnxruntime', ('.onnx',), ('onnx', 'onnxruntime'), 'onnxruntime'),
        Runtime('torch_export', ('.pt2',), (), 'onnxruntime'),
        Runtime('executorch', ('.pte',), ('executorch',), 'onnxruntime'),
        Runtime('ncnn', ('.param', '.bin'), ('ncnn', 'pnnx'), 'ncnn'),
        Runtime('coreml', ('.mlpackage',), ('coremltools',), 'onnxruntime'),
    )
}  # fmt: skip


def runtime_named(name: str) -> Runtime:
    """The runtime of that name; raises ``ValueError`` where there is none."""
    if name not in RUNTIMES:
        raise ValueError(f'there is no runtime {name!r}; choose from {", ".join(RUNTIMES)}.')
    return RUNTIMES[name]


def export_runtime(
    model: nn.Module,
    runtime: str,
    path: Union[str, Path],
    input_size: tuple[int, int, int] = (3, 224, 224),
    batch: int = 1,
    tolerance: float = 1e-5,
    choices: Optional[Mapping[str, str]] = None,
    native: bool = False,
    metadata: Optional[Mapping[str, Any]] = None,
) -> RuntimeReport:
    """Lower a finished model and write it for a runtime.

    Args:
        model: classifier or backbone, condensed or not, on the CPU in float32; left as it is.
        runtime: key of ``RUNTIMES``.
        path: file to write, ending in the runtime's first suffix.
        input_size: ``(C, H, W)``, fixed in the file.
        batch: images in a call, fixed in the file.
        tolerance: largest relative difference to PyTorch that is accepted.
        choices: implementation by layer in place of the one that the rules choose.
        native: stages in the native kernels (``'torch_export'`` and ``'onnxruntime'``); a program that loads the file
            imports ``cnv2_plugin.kernels.operator``, or registers the kernels' library, first.
        metadata: plain values stored in the file besides what the model says of itself (size, mean, std, classes);
            ``.pte`` and ``.param`` files have no place for any.

    Raises:
        KernelsMissingError: ``native``, and the kernels are not built.
        ValueError: an unknown runtime, a wrong suffix, or sizes that do not fit.
        FileExistsError: what the runtime reads is several files or a folder, and one exists; a single file takes the
            place of an older one.
        ImportError: a package of the runtime is missing.
        UnfinishedPruningError: pruning is not finished.
        VerificationError: the file does not agree with PyTorch; nothing is written.
    """
    kind, path = runtime_named(runtime), Path(path)
    if path.suffix != kind.suffixes[0]:
        raise ValueError(f'{path} does not end in {kind.suffixes[0]}, as {runtime} files do; give such a name.')
    if not isinstance(batch, int) or batch < 1 or len(input_size) != 3 or any(size < 1 for size in input_size):
        raise ValueError(
            f'batch is {batch!r} and input_size {tuple(input_size)}; both take whole numbers of at least 1.'
        )
    paths = tuple(path.with_suffix(suffix) for suffix in kind.suffixes)
    check_free(paths, kind)
    module = kind.module()
    if native and runtime not in ('torch_export', 'onnxruntime'):
        raise ValueError(f'{runtime} files hold standard operators only; native ones are for torch_export and ONNX.')
    check_float32(model)
    lowered = lower(model, input_size, 'native' if native else kind.table, choices)
    with staged(*paths) as temporaries:
        told = serving_metadata(model, input_size, metadata)
        module.write(lowered, temporaries[0], torch.zeros(batch, *input_size), told)
        report = None
        if hasattr(module, 'load'):
            report = verify(model, module.load(temporaries[0]), input_size, batch_size=batch)
            report.check(tolerance, f'the {runtime} file')
        size = sum(map(_bytes, temporaries))
    return RuntimeReport(runtime, paths, size, report, lowered_forms(lowered))


def serving_metadata(
    model: nn.Module, input_size: tuple[int, int, int], metadata: Optional[Mapping[str, Any]]
) -> dict[str, Any]:
    """What serving must know, see ``cnv2_plugin.serving.metadata``; timm's networks say it themselves."""
    config = getattr(model, 'pretrained_cfg', None) or {}
    names = {'architecture': 'arch', **{name: name for name in ('mean', 'std', 'interpolation', 'crop_pct')}}
    found = {name: config[key] for key, name in names.items() if config.get(key) is not None}
    found |= {name: per_channel(found[name], input_size[0]) for name in ('mean', 'std') if name in found}
    if hasattr(model, 'num_classes'):
        found['num_classes'] = model.num_classes
    return {'version': __version__, 'size': list(input_size), **found, **(metadata or {})}


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob('*') if f.is_file()) if path.is_dir() else path.stat().st_size


def check_float32(model: nn.Module) -> None:
    """Raise where a model has weights of another type than exported files hold, or values that are no numbers."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise ValueError(f'{name} is {parameter.dtype}, but exported files hold float32; give model.float().')
    check_finite(model.state_dict(), 'the model')


def check_free(paths: tuple[Path, ...], kind: Runtime) -> None:
    """Raise where one of several files exists: an old and a new one could be left together if writing is stopped."""
    if len(paths) == 1 and paths[0].suffix != '.mlpackage':  # which is a folder
        return check_target(paths[0])
    check_folder(paths[0])
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise FileExistsError(
            f'{" and ".join(taken)} exists, and {kind.name} writes more than one file, which cannot take the place of '
            f'older ones at one stroke; remove it or give another name.'
        )


def as_text(value: Any) -> str:
    """A plain value as the text that files hold: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value)

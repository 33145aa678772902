"""One self-contained HTML page about a model: shapes, cost, sparsity, maps, training, deployment, latency."""

from base64 import b64encode
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional, Union

import torch
from torch import nn

from ..benchmark import benchmark, machine
from ..checkpoints import atomic_path
from ..deploy import condense, verify
from ..layers import GroupSparseConv2d, UnfinishedPruningError
from ..models.modes import in_eval
from .cost import cost_table, count_cost
from .heatmap import connection_map, plot_maps
from .heatmap_trace import find_trunk, trace
from .report_log import plot_curves, read_log
from .sparsity import plot_sparsity, sparsity_report


def write_report(
    model: nn.Module,
    path: Union[str, Path],
    title: str,
    input_size: tuple[int, int, int],
    log: Optional[Union[str, Path]] = None,
    rounds: int = 20,
    facts: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write a page about a CondenseNet, CondenseNetV2 or (SFR-)ShuffleNetV2 that needs no other file and no network.

    ``log`` is a training log, see :func:`read_log`; 0 ``rounds`` leave out the latency; ``facts`` are more lines of the
    first table.

    Raises:
        ValueError: the model is of another family, or the log holds no curve.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from .. import __version__

    curves = read_log(log) if log is not None else []  # first, as it may refuse the log
    layers = [layer for layer in model.modules() if isinstance(layer, GroupSparseConv2d)]
    sparsity = sparsity_report(model) if layers else None
    kinds = {use.kind for use in trace(model).uses}
    maps = [connection_map(model, kind, title) for kind in ('lgc', 'sfr') if kind in kinds]
    cost = count_cost(model, input_size)
    condensed = all(layer.deploy for layer in layers)
    measured = rounds > 0 and all(layer.is_finished() for layer in layers)
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template('report.html').render(
        title=title,
        facts={**(facts or {}), 'cnv2_plugin': __version__, 'torch': torch.__version__},
        input_size=input_size,
        shape=asdict(find_trunk(model).arch),
        parts=_parts(model, input_size),
        cost=cost_table({'as it is': cost, 'pruned': cost.pruned}),
        sparsity=sparsity,
        sparsity_picture=sparsity and _draw(plot_sparsity, sparsity),
        maps={m.kind.upper(): _draw(plot_maps, [m]) for m in maps},
        log=log and Path(log).name,
        curves=curves,
        curves_picture=curves and _draw(plot_curves, curves),
        deployment=None if condensed else _deployment(model, input_size),
        latency=_latency(model, condensed, input_size, rounds) if measured else None,
        rounds=rounds,
        processor=machine()['processor'],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding='utf-8')


def _parts(model: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, Any, tuple[int, ...]]]:
    """Name, layers and feature shape of the stem and of each stage."""
    shadow = in_eval(deepcopy(find_trunk(model)).to('meta'))
    shapes = []
    for part in (shadow.stem, *shadow.stages):
        part.register_forward_hook(lambda part, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        shadow(torch.empty(1, *input_size, device='meta'))
    names = [('stem', ''), *((f'stage {i}', len(stage.layers)) for i, stage in enumerate(shadow.stages, 1))]
    return [(*name, shape) for name, shape in zip(names, shapes)]


def _deployment(model: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """The comparison with the condensed form, or the error that condensing raises."""
    try:
        return verify(model, condense(model), input_size, exact=True)
    except UnfinishedPruningError as error:
        return error


def _latency(model: nn.Module, condensed: bool, input_size: tuple[int, int, int], rounds: int) -> list:
    runtimes = ('eager', 'onnxruntime') if find_spec('onnxruntime') and find_spec('onnx') else ('eager',)
    forms = ('condensed',) if condensed else ('training', 'condensed')
    return benchmark({'model': model}, forms, runtimes, input_size, rounds=rounds)


def _draw(plot, what: Any) -> str:
    """Draw a picture and return it as a ``data:`` address."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'picture.svg'
        plot(what, path)
        return f'data:image/svg+xml;base64,{b64encode(path.read_bytes()).decode()}'

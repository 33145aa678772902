"""One self-contained HTML page about a model: shapes, cost, sparsity, maps, training, deployment, latency."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
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


@dataclass
class Section:
    """A heading with text, a table, and the alternative text and ``data:`` address of each picture under it."""

    title: str
    text: str = ''
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    pictures: list[tuple[str, str]] = field(default_factory=list)


def write_report(
    model: nn.Module,
    path: Union[str, Path],
    title: str,
    input_size: tuple[int, int, int],
    log: Optional[Union[str, Path]] = None,
    rounds: int = 20,
    facts: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write the page; it needs no other file and no network.

    Args:
        model: CondenseNet, CondenseNetV2 or (SFR-)ShuffleNetV2 in training or condensed form; left as it is.
        path: HTML file to write.
        title: heading of the page.
        input_size: ``(C, H, W)`` of one image.
        log: training log, see :func:`cnv2_plugin.analysis.report_log.read_log`.
        rounds: rounds of the latency measurement; 0 leaves it out.
        facts: more lines of the first table.

    Raises:
        ValueError: the model is of another family, or the log holds no curve.
        ModuleNotFoundError: jinja2 or matplotlib is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from .. import __version__

    facts = {**(facts or {}), 'cnv2_plugin': __version__, 'torch': torch.__version__}
    training = _training(log)  # first, as it may refuse the log
    finished = all(layer.is_finished() for layer in _sparse_layers(model))
    sections = [
        _architecture(model, input_size, facts),
        _cost(model, input_size),
        *_sparsity(model),
        *_maps(model, title),
        *training,
        _deployment(model, input_size),
        *([_latency(model, input_size, rounds)] if finished and rounds > 0 else []),
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template('report.html').render(title=title, sections=sections)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding='utf-8')


def _architecture(model: nn.Module, input_size: tuple[int, int, int], facts: Mapping[str, Any]) -> Section:
    trunk = find_trunk(model)
    shape = ', '.join(f'{name} {value}' for name, value in asdict(trunk.arch).items())
    about = '; '.join(f'{name}: {value}' for name, value in facts.items())
    shadow = in_eval(deepcopy(trunk).to('meta'))
    rows: list[list[Any]] = []
    for part in (shadow.stem, *shadow.stages):
        part.register_forward_hook(lambda part, inputs, output: rows.append(_part(len(rows), part, output)))
    with torch.no_grad():
        shadow(torch.empty(1, *input_size, device='meta'))
    text = f'{about}. Input {" x ".join(map(str, input_size))}. Shape: {shape}.'
    return Section('Architecture', text, ('part', 'layers', 'features (C x H x W)'), rows)


def _part(number: int, part: nn.Module, output: torch.Tensor) -> list[Any]:
    name, layers = (f'stage {number}', len(part.layers)) if number else ('stem', '')
    return [name, layers, ' x '.join(map(str, output.shape[1:]))]


def _cost(model: nn.Module, input_size: tuple[int, int, int]) -> Section:
    cost = count_cost(model, input_size)
    text = 'One image. One multiply-add is two FLOPs. "Pruned" is what the condensed form has.'
    return Section('Cost', text, *cost_table({'as it is': cost, 'pruned': cost.pruned}))


def _sparsity(model: nn.Module) -> list[Section]:
    if not _sparse_layers(model):
        return []
    report = sparsity_report(model)
    pictures = [('sparsity of each layer', _draw(lambda path: plot_sparsity(report, path)))]
    return [Section('Sparsity', report.summary(), *report.layer_table(), pictures)]


def _maps(model: nn.Module, title: str) -> list[Section]:
    kinds = {use.kind for use in trace(model).uses}
    maps = [connection_map(model, kind, title) for kind in ('lgc', 'sfr') if kind in kinds]
    text = (
        'Rows are layers, columns older layers whose features they read (LGC) or reactivate (SFR); grey where there '
        'can be no connection.'
    )
    drawn = [(f'{m.kind.upper()} map', _draw(lambda path, m=m: plot_maps([m], path))) for m in maps]
    return [Section('Connection maps', text, pictures=drawn)] if maps else []


def _training(log: Optional[Union[str, Path]]) -> list[Section]:
    if log is None:
        return []
    curves = read_log(log)
    picture = ('training curves', _draw(lambda path: plot_curves(curves, path)))
    header = ('quantity', 'first', 'last', 'smallest', 'largest')
    rows = [[c.name, *(f'{value:.4g}' for value in (c.y[0], c.y[-1], min(c.y), max(c.y)))] for c in curves]
    return [Section('Training', f'From {Path(log).name}.', header, rows, [picture])]


def _deployment(model: nn.Module, input_size: tuple[int, int, int]) -> Section:
    if all(layer.deploy for layer in _sparse_layers(model)):
        return Section('Deployment', 'The model is in its deployed form already; there is nothing to convert.')
    try:
        condensed = condense(model)
    except UnfinishedPruningError as error:
        return Section('Deployment', f'The model cannot be condensed yet. {error}')
    result = verify(model, condensed, input_size)
    rows = [
        ['largest absolute difference', f'{result.max_abs:.2e}'],
        ['largest relative difference', f'{result.max_rel:.2e}'],
        ['same class', f'{result.argmax_agreement:.1%} of {result.num_inputs} random images'],
    ]
    text = 'Outputs of the condensed form (standard group convolutions) against the training form.'
    return Section('Deployment', text, ('', 'condensed'), rows)


def _latency(model: nn.Module, input_size: tuple[int, int, int], rounds: int) -> Section:
    runtimes = ('eager', 'onnxruntime') if find_spec('onnxruntime') and find_spec('onnx') else ('eager',)
    condensed = all(layer.deploy for layer in _sparse_layers(model))
    forms = ('condensed',) if condensed else ('training', 'condensed')
    measured = benchmark({'model': model}, forms, runtimes, input_size, rounds=rounds)
    rows = [
        [m.form, m.runtime, *(f'{value:.2f}' for value in (m.timing.min, m.timing.median, m.timing.max))]
        for m in measured
    ]
    text = (
        f'One image, one thread, {rounds} interleaved rounds on {machine()["processor"]}; milliseconds. The training '
        f'form has its masks folded in.'
    )
    return Section('Latency', text, ('form', 'runtime', 'min', 'median', 'max'), rows)


def _sparse_layers(model: nn.Module) -> list[GroupSparseConv2d]:
    return [layer for layer in model.modules() if isinstance(layer, GroupSparseConv2d)]


def _draw(draw) -> str:
    """Draw a picture and return it as a ``data:`` address."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'picture.svg'
        draw(path)
        return f'data:image/svg+xml;base64,{b64encode(path.read_bytes()).decode()}'

"""Layer-to-layer connection maps: which older features each layer still reads (LGC) or reactivates (SFR).

The LGC map is the papers' picture (CondenseNet, figure 4): the mean absolute masked weight between a layer and the
features of each older layer, over the largest of the row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Union

import torch
from torch import Tensor, nn

from ..benchmark.figures import picture, write_rows
from .heatmap_trace import Kind, Source, Use, trace

_WORDS = dict(lgc=('Features read (LGC)', 'reads'), sfr=('Features reactivated (SFR)', 'reactivates'))
_NORMALISED = ('normalised', 'mean |weight|, largest of each row = 1')
_QUANTITIES = dict(lgc=[_NORMALISED], sfr=[_NORMALISED, ('share', 'share of the features reactivated')])
_MOST_LABELS = 20


@dataclass(frozen=True)
class ConnectionMap:
    """Connections from each source layer's features to each target layer.

    A feature's own block does not end its life in a CondenseNet, so a row reaches back to the stem; in a ShuffleNet
    features live for one stage. Where there is no connection by construction, values are NaN.

    Attributes:
        title: name of the model.
        kind: ``'lgc'`` (targets read sources) or ``'sfr'`` (targets reactivate sources).
        targets: label of each row, block and layer from 1.
        target_blocks: block of each row.
        sources: the columns.
        strength: mean absolute masked weight between target and the source's features, ``(T, S)``.
        share: share of the source's features that are connected to the target at all, ``(T, S)``.
    """

    title: str
    kind: Kind
    targets: tuple[str, ...]
    target_blocks: tuple[int, ...]
    sources: tuple[Source, ...]
    strength: Tensor
    share: Tensor

    @property
    def normalised(self) -> Tensor:
        """``strength`` over the largest of its row, ``(T, S)``."""
        largest = self.strength.nan_to_num(0).amax(1, keepdim=True).clamp(min=1e-300)
        return self.strength / largest


def connection_map(model: nn.Module, kind: Kind, title: str = '') -> ConnectionMap:
    """The connection map of a model, in training, packed or condensed form.

    Args:
        model: CondenseNet, CondenseNetV2 or SFR-ShuffleNetV2, or a model around one.
        kind: ``'lgc'`` or ``'sfr'``.
        title: name of the model in pictures; its class name by default.

    Raises:
        ValueError: the model is of another family, or has no layer of this kind.

    Example:
        >>> sfr = connection_map(model, 'sfr')
        >>> sfr.share[-1]                      # what the last layer reactivates of each older layer
    """
    if kind not in ('lgc', 'sfr'):
        raise ValueError(f"kind is {kind!r}; it takes 'lgc' or 'sfr'.")
    traced = trace(model)
    uses = [use for use in traced.uses if use.kind == kind]
    if not uses:
        names = dict(lgc='learned group convolution', sfr='sparse feature reactivation')
        raise ValueError(f'{type(model).__name__} has no {names[kind]}, so it has no {kind.upper()} map.')
    rows = [_row(use, traced.source_of, len(traced.sources)) for use in uses]
    strength, share = (torch.stack(values) for values in zip(*rows))
    return ConnectionMap(
        title or type(model).__name__, kind, tuple(use.label for use in uses), tuple(use.block for use in uses),
        traced.sources, strength, share,
    )  # fmt: skip


def _row(use: Use, source_of: Tensor, sources: int) -> tuple[Tensor, Tensor]:
    """Mean strength and connected share of each source's features; NaN for sources that are out of reach."""
    source = source_of[use.feature]
    reachable = torch.bincount(source, minlength=sources)
    strength = use.strength.new_zeros(sources).index_add(0, source, use.strength)
    connected = use.strength.new_zeros(sources).index_add(0, source, (use.groups > 0).to(use.strength.dtype))
    count = torch.where(reachable > 0, reachable.double(), torch.nan)
    return strength / count, connected / count


def write_csv(maps: Iterable[ConnectionMap], path: Union[str, Path]) -> None:
    """Write every connection of the maps as one line of a CSV file."""
    header = 'model kind target target_block source source_block source_features strength normalised share'.split()
    rows = [
        [m.title, m.kind, target, block, source.label, source.block, source.features, *(f'{n:.6g}' for n in numbers)]
        for m in maps
        for target, block, row in zip(
            m.targets, m.target_blocks, torch.stack((m.strength, m.normalised, m.share), -1).tolist()
        )
        for source, numbers in zip(m.sources, row)
        if not isnan(numbers[0])
    ]
    write_rows(path, header, rows)


def plot_maps(maps: Sequence[ConnectionMap], path: Union[str, Path]) -> None:
    """Draw maps of one kind side by side, with the boundaries of the blocks.

    Each row of a map is a layer, each column an older layer whose features it reads (LGC) or reactivates (SFR). Where
    there is no connection by construction the map is grey; for SFR, strength and share are drawn.

    Args:
        maps: maps of the same kind, one for each model.
        path: picture to write; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        ValueError: no maps, or maps of both kinds.
    """
    kinds = {m.kind for m in maps}
    if len(kinds) != 1:
        raise ValueError(f'maps are of {len(kinds)} kinds; give at least one map, all of one kind.')
    quantities = _QUANTITIES[kinds.pop()]
    panels = [(m, quantity) for quantity in quantities for m in maps]
    columns = len(maps) if len(maps) > 1 else len(quantities)
    size = (4.6, 4.4) if columns > 1 else (6.2, 5.4)
    with picture(path, len(panels) // columns, columns, *size) as (figure, axes):
        for axis, (m, (quantity, label)) in zip(axes, panels):
            _draw(figure, axis, m, quantity, label)


def _draw(figure, axis, m: ConnectionMap, quantity: str, label: str) -> None:
    import matplotlib

    colours = matplotlib.colormaps['viridis'].with_extremes(bad='0.9')
    image = axis.imshow(getattr(m, quantity).numpy(), cmap=colours, vmin=0, vmax=1, aspect='auto', rasterized=True)
    figure.colorbar(image, ax=axis, label=label, shrink=0.9)
    source_blocks = [source.block for source in m.sources]
    _label(axis.set_xticks, [source.label for source in m.sources], source_blocks, rotation=90)
    _label(axis.set_yticks, m.targets, m.target_blocks)
    title, verb = _WORDS[m.kind]
    axis.set(
        title=f'{m.title}\n{title}', xlabel='older layer, whose features they are', ylabel=f'layer that {verb} them'
    )
    for draw, blocks in ((axis.axvline, source_blocks), (axis.axhline, m.target_blocks)):
        for i, (before, block) in enumerate(pairwise(blocks)):
            if before != block:
                draw(i + 0.5, color='white', linewidth=1.2)


def _label(set_ticks, labels: Sequence[str], blocks: Sequence[int], **style) -> None:
    """Name every layer where there is room, else every block at its middle."""
    if len(labels) <= _MOST_LABELS:
        set_ticks(range(len(labels)), labels, **style)
        return
    named = {}
    for i, (label, block) in enumerate(zip(labels, blocks)):
        named.setdefault(f'block {block}' if '.' in label else label, []).append(i)
    set_ticks([sum(indices) / len(indices) for indices in named.values()], list(named), **style)

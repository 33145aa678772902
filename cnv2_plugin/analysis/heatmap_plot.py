"""Connection maps as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Union

from .figures import picture
from .heatmap import ConnectionMap

_TITLES = dict(lgc='Features read (LGC)', sfr='Features reactivated (SFR)')
_QUANTITIES = dict(
    lgc=[('normalised', 'mean |weight|, largest of each row = 1')],
    sfr=[('normalised', 'mean |weight|, largest of each row = 1'), ('share', 'share of the features reactivated')],
)
_MOST_LABELS = 20


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
    rows = len(panels) // columns
    width, height = (4.6, 4.4) if columns > 1 else (6.2, 5.4)
    with picture(path, rows, columns, width, height) as (figure, axes):
        for axis, (m, (quantity, label)) in zip(axes, panels):
            _draw(figure, axis, m, quantity, label)


def _draw(figure, axis, m: ConnectionMap, quantity: str, label: str) -> None:
    import matplotlib

    colours = matplotlib.colormaps['viridis'].with_extremes(bad='0.9')
    image = axis.imshow(getattr(m, quantity).numpy(), cmap=colours, vmin=0, vmax=1, aspect='auto', rasterized=True)
    figure.colorbar(image, ax=axis, label=label, shrink=0.9)
    axis.set_title(f'{m.title}\n{_TITLES[m.kind]}')
    source_blocks = [source.block for source in m.sources]
    _label(axis.set_xticks, [source.label for source in m.sources], source_blocks, rotation=90)
    _label(axis.set_yticks, m.targets, m.target_blocks)
    axis.set_xlabel('older layer, whose features they are')
    axis.set_ylabel('layer that reactivates them' if m.kind == 'sfr' else 'layer that reads them')
    for draw, blocks in ((axis.axvline, source_blocks), (axis.axhline, m.target_blocks)):
        for i in range(1, len(blocks)):
            if blocks[i] != blocks[i - 1]:
                draw(i - 0.5, color='white', linewidth=1.2)


def _label(set_ticks, labels: Sequence[str], blocks: Sequence[int], **style) -> None:
    """Name every layer where there is room, else every block at its middle."""
    if len(labels) <= _MOST_LABELS:
        set_ticks(range(len(labels)), labels, **style)
        return
    named = {}
    for i, (label, block) in enumerate(zip(labels, blocks)):
        named.setdefault(f'block {block}' if '.' in label else label, []).append(i)
    set_ticks([sum(indices) / len(indices) for indices in named.values()], list(named), **style)

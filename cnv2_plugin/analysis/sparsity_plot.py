"""Sparsity as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Union

from .figures import picture
from .sparsity import LayerSparsity, SourceUse, SparsityReport

_COLOURS = dict(lgc='#1f77b4', sfr='#d62728')
_NAMES = dict(lgc='LGC', sfr='SFR')
_UNUSED = dict(lgc='never read by any group', sfr='never reactivated by any group')


def plot_sparsity(report: SparsityReport, path: Union[str, Path], title: str = '') -> None:
    """Draw kept weights and unused channels of each layer, and how often features are reused and reactivated.

    Args:
        report: of :func:`cnv2_plugin.analysis.sparsity_report`.
        path: picture to write (``.png``, ``.svg``, ``.pdf``).
        title: name of the model.
    """
    with picture(path, 2, 2, width=4.7, height=3.3) as (figure, axes):
        if title:
            figure.suptitle(title)
        _plot_layers(axes[0], report.layers, 'kept', 'weights kept (%)')
        _plot_layers(axes[1], report.layers, 'unused', 'channels of the layer (%)')
        if report.sources:
            _plot_unused_sources(axes[2], report.sources)
        else:
            axes[2].set_visible(False)
        _plot_multiplicity(axes[3], report.layers)


def _plot_layers(axis, layers: Sequence[LayerSparsity], value: str, label: str) -> None:
    for kind in ('lgc', 'sfr'):
        own = [layer for layer in layers if layer.kind == kind]
        if not own:
            continue
        shares = [layer.kept if value == 'kept' else layer.unused / layer.features for layer in own]
        name = f'{_NAMES[kind]} (kept)' if value == 'kept' else f'{_NAMES[kind]}: {_UNUSED[kind]}'
        x = range(1, len(own) + 1)
        axis.plot(x, [share * 100 for share in shares], marker='.', color=_COLOURS[kind], label=name)
    axis.set_ylim(0, 103)
    axis.set_xlabel('layer')
    axis.set_ylabel(label)
    axis.set_title('Weights kept by each layer' if value == 'kept' else 'Channels that no group of the layer chose')
    axis.grid(alpha=0.3)
    axis.legend()


def _plot_unused_sources(axis, sources: Sequence[SourceUse]) -> None:
    x = list(range(len(sources)))
    rows = (
        ('lgc', 'never read', [s.never_read / s.features if s.readers else None for s in sources]),
        ('sfr', 'never reactivated', [s.never_reactivated / s.features if s.updaters else None for s in sources]),
    )
    for offset, (kind, label, shares) in zip((-0.2, 0.2), rows):
        places = [(i, share) for i, share in zip(x, shares) if share is not None]
        if places:
            axis.bar([i + offset for i, _ in places], [share * 100 for _, share in places], 0.4, color=_COLOURS[kind],
                     label=f'{label} by a later layer')  # fmt: skip
    step = -(-len(sources) // 16)
    axis.set_xticks(x[::step], [source.label for source in sources][::step], rotation=90)
    axis.set_xlim(-0.6, len(sources) - 0.4)
    axis.set_ylim(0, 103)
    axis.set_xlabel('layer that makes the features')
    axis.set_ylabel('its features (%)')
    axis.set_title('Features that no later layer uses')
    axis.grid(alpha=0.3, axis='y')
    axis.legend()


def _plot_multiplicity(axis, layers: Sequence[LayerSparsity]) -> None:
    """Share of the channels that 0, 1, ... groups of their layer chose, over all layers of a kind."""
    for offset, kind in zip((-0.2, 0.2), ('lgc', 'sfr')):
        own = [layer.multiplicity for layer in layers if layer.kind == kind]
        if not own:
            continue
        longest = 1 + max(i for row in own for i, count in enumerate(row) if count)
        counts = [sum(row[i] for row in own if i < len(row)) for i in range(longest)]
        axis.bar(
            [i + offset for i in range(longest)], [100 * count / sum(counts) for count in counts], 0.4,
            color=_COLOURS[kind], label=f'{_NAMES[kind]}: groups that {"read" if kind == "lgc" else "reactivate"} it',
        )  # fmt: skip
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel('number of groups')
    axis.set_ylabel('channels (%)')
    axis.set_title('Multiplicity: groups per channel')
    axis.grid(alpha=0.3, axis='y')
    axis.legend()

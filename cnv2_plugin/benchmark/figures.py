"""Pictures and CSV files, each written whole or not at all."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

from ..checkpoints import atomic_path

FORMATS = ('.png', '.svg', '.pdf', '.jpg', '.jpeg', '.webp', '.eps', '.tif')
_STYLE = {'font.size': 10, 'axes.titlesize': 11, 'legend.fontsize': 9, 'svg.hashsalt': 'cnv2'}


@contextmanager
def picture(
    path: Union[str, Path], rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a figure and its axes, ``width x height`` inches each; write it when the block ends without an error.

    Raises:
        ValueError: the suffix names no known format.
    """
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(
            f'{path} ends in {suffix or "nothing"}; a picture takes a name ending in {", ".join(FORMATS)}.'
        )
    import matplotlib

    matplotlib.use('Agg', force=False)
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout='constrained', **options
        )
        try:
            yield figure, list(axes.flat)
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=110, metadata={'Date': None} if suffix == '.svg' else None)
        finally:
            pyplot.close(figure)


def write_rows(path: Union[str, Path], header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file."""
    with atomic_path(path) as temporary, open(temporary, 'w', newline='') as file:
        csv.writer(file).writerows([header, *rows])

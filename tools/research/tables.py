"""Markdown tables of finished runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Optional


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], texts: int = 1) -> str:
    """A Markdown table; the first ``texts`` columns are text, the others are aligned right."""
    lines = ['| ' + ' | '.join(header) + ' |', '|' + '---|' * texts + '---:|' * (len(header) - texts)]
    return '\n'.join([*lines, *('| ' + ' | '.join(map(str, row)) + ' |' for row in rows)]) + '\n'


def replace_table(text: str, page: Path, mark: str) -> None:
    """Put a table into a page, between the lines ``<!-- MARK: begin -->`` and ``<!-- MARK: end -->``.

    Raises:
        ValueError: the page lacks the lines.
    """
    begin, end = (f'<!-- {mark}: {side} -->\n' for side in ('begin', 'end'))
    before, first, rest = page.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(
            f'{page} lacks the lines "{begin.strip()}" and "{end.strip()}"; put them where the table goes.'
        )
    page.write_text(f'{before}{begin}\n{text}\n{end}{after}')


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean, standard deviation over the seeds, and how many there are."""
    spread = f' ± {stdev(values):.2f}' if len(values) > 1 else ''
    return f'{fmean(values):.2f}{spread} ({len(values)})'


def mean_and_each(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, and each value; empty where there is none."""
    each = ' / '.join(f'{value:#.4g}' for value in values)
    return f'{fmean(values):#.4g} ± {stdev(values):#.2g} ({each})' if len(values) > 1 else each


def network_table(
    found: Sequence[tuple[str, Sequence[dict[str, Any]]]],
    latency: Optional[Mapping[str, Mapping[str, float]]] = None,
    training: Optional[Mapping[str, float]] = None,
) -> str:
    """Runs with their figures, one seed each; a run without any figures is left out.

    Args:
        found: label of a run, and the figures of its seeds that are there.
        latency: least milliseconds by name of the run and form; no columns where no run of the table has any.
        training: seconds of the whole training by name of the run, measured side by side; where no run of the table has
            any, what a CPU took for the runs themselves.
    """
    found = [(label, figures) for label, figures in found if figures]
    names = {figures[0]['name'] for _, figures in found}
    timed = {name: ms for name, ms in (latency or {}).items() if name in names}
    seconds = {name: f'{value:.0f}' for name, value in (training or {}).items() if name in names}
    header = ['run', 'multiply-adds (M)', 'parameters (k)', 'test accuracy, mean ± spread (seeds)', 'each seed',
              'training, one core (s)' if seconds else 'training, CPU seconds']  # fmt: skip
    if timed:
        header += ['latency, standard (ms)', 'native (ms)']
    rows = []
    for label, figures in found:
        values = accuracies(figures)
        row = [
            label, f'{figures[0]["mult_adds"] / 1e6:.3f}', f'{figures[0]["params"] / 1e3:.1f}',
            mean_and_spread(values), ' / '.join(f'{value:.2f}' for value in values),
            seconds.get(figures[0]['name'], '') if seconds else processor_seconds(figures),
        ]  # fmt: skip
        if timed:
            own = timed.get(figures[0]['name'], {})
            row += [f'{own[form]:.3f}' if form in own else '' for form in ('standard', 'native')]
        rows.append(row)
    return markdown(header, rows)


def processor_seconds(figures: Iterable[Mapping[str, Any]]) -> str:
    """Mean of the runs that a CPU trained from beginning to end; empty where there is none."""
    seconds = [one['seconds'] for one in figures if 'device' not in one and all(one['history'].get('on_cpu', [1]))]
    return f'{fmean(seconds):.0f}' if seconds else ''


def accuracies(figures: Iterable[dict[str, Any]]) -> list[float]:
    """Test accuracy of each seed in percent, condensed where pruned."""
    return [one.get('accuracy_condensed', one['accuracy']) for one in figures]

"""``cnv2 sparsity``: what is kept of each layer, and which features are never reused or never reactivated."""

import argparse
from pathlib import Path

from ._models import add_model_options, open_model
from ._output import print_table
from ._usage import UsageError

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 sparsity``."""
    parser.add_argument('model', help='checkpoint, or timm name of an untrained network (condensenetv2_a)')
    parser.add_argument('--plot', type=Path, help='picture to write (.png, .svg, .pdf)')
    parser.add_argument('--csv', type=Path, help='table to write')
    parser.add_argument('--markdown', action='store_true', help='print Markdown')
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print the tables, and write the picture and the CSV file."""
    from ..analysis import plot_sparsity, sparsity_report
    from ..analysis.figures import check_format
    from ..analysis.sparsity import write_csv

    if args.plot:
        try:
            check_format(args.plot)
        except ValueError as error:
            raise UsageError(str(error)) from error
    source = open_model(args.model, args)
    title, report = source.name, sparsity_report(source.model)
    print_table(f'{title}: layers', *layer_table(report), args.markdown)
    if report.sources:
        print_table(f'{title}: features, by the layer that makes them', *source_table(report), args.markdown)
        print(summary(report))
    if args.csv:
        write_csv(report, args.csv)
    if args.plot:
        plot_sparsity(report, args.plot, title)


def layer_table(report) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each group-sparse layer."""
    header = ['layer', 'kind', 'channels', 'G', 'factor', 'stage', 'kept', 'unused', 'chosen by 0, 1, ... groups']
    rows = [
        [layer.name, layer.kind.upper(), f'{layer.in_channels} to {layer.out_channels}', layer.groups, layer.factor,
         f'{layer.stage}/{layer.num_stages}', f'{layer.kept:.1%}', f'{layer.unused} of {layer.features}',
         _counts(layer.multiplicity)]
        for layer in report.layers
    ]  # fmt: skip
    return header, [*rows, ['all', '', '', '', '', '', f'{report.kept:.1%}', '', '']]


def source_table(report) -> tuple[list[str], list[list[str]]]:
    """Header and rows, one for each layer that makes features."""
    header = ['made by', 'features', 'later readers', 'never read', 'mean readers', 'later SFR', 'never reactivated',
              'reactivated by 0, 1, ... layers']  # fmt: skip
    rows = [
        [s.label, s.features, s.readers, s.never_read if s.readers else '-', f'{s.reads:.2f}' if s.readers else '-',
         s.updaters, s.never_reactivated if s.updaters else '-', _counts(s.reactivations)]
        for s in report.sources
    ]  # fmt: skip
    return header, rows


def summary(report) -> str:
    """Never reused and never reactivated features, in a sentence."""
    from ..analysis.sparsity import totals

    found = totals(report.sources)
    parts = [
        f'{count} of {of} features are never {"read" if key == "never_read" else "reactivated"} by a later layer'
        for key, (count, of) in found.items()
        if of
    ]
    return f'{"; ".join(parts)}.'


def _counts(numbers) -> str:
    """Counts without the zeros at the end."""
    last = max((i for i, number in enumerate(numbers) if number), default=0)
    return ' '.join(map(str, numbers[: last + 1]))

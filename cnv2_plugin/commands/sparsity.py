"""``cnv2 sparsity``: what is kept of each layer, and which features are never reused or never reactivated."""

import argparse
from pathlib import Path

from ._models import add_model_options, open_model
from ._output import print_table
from ._usage import check_output, check_paths

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='checkpoint, or timm name of an untrained network (condensenetv2_a)')
    parser.add_argument('--plot', type=Path, help='picture to write (.png, .svg, .pdf)')
    parser.add_argument('--csv', type=Path, help='table to write')
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print the tables, and write the picture and the CSV file."""
    from ..analysis import plot_sparsity, sparsity_report
    from ..analysis.sparsity import write_csv
    from ..benchmark.figures import FORMATS

    if args.plot:
        check_output(args.plot, FORMATS, '--plot')
    check_paths([args.plot, args.csv], [args.model])
    source = open_model(args.model, args)
    title, report = source.name, sparsity_report(source.model)
    print_table(f'{title}: layers', *report.layer_table(), args.markdown)
    if report.sources:
        print_table(f'{title}: features, by the layer that makes them', *report.source_table(), args.markdown)
        print(report.summary())
    if args.csv:
        write_csv(report, args.csv)
    if args.plot:
        plot_sparsity(report, args.plot, title)

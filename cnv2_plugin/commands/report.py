"""``cnv2 report``: one HTML page about a checkpoint."""

import argparse
from pathlib import Path

from ._models import add_model_options, open_model
from ._usage import UsageError, add_input_option, check_output, check_paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='checkpoint, or timm name of an untrained network (condensenetv2_a)')
    parser.add_argument('--out', type=Path, default=Path('report.html'), help='file to write (default report.html)')
    parser.add_argument('--log', type=Path, help='training log: summary.csv (timm), scalars.json (OpenMMLab)')
    add_input_option(parser)
    parser.add_argument('--rounds', type=int, default=20, help='rounds of the latency measurement, 0 for none')
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    from ..analysis.report import write_report
    from ..checkpoints.io import check_finite

    check_output(args.out, ('.html', '.htm'))
    if args.rounds < 0:
        raise UsageError(f'--rounds is {args.rounds}; it takes 0 or more.')
    check_paths([args.out], [args.model, args.log])
    source = open_model(args.model, args)
    check_finite(source.model.state_dict(), args.model)
    names = dict(model=Path(args.model).name)
    write_report(source.model, args.out, source.name, source.input_size, args.log, args.rounds, names)
    print(f'{args.out}: {args.out.stat().st_size / 1e3:.0f} kB')

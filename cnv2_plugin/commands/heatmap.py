"""``cnv2 heatmap``: which older features each layer still reads (LGC) or reactivates (SFR), as pictures and CSV."""

import argparse
from pathlib import Path

from ._models import add_model_options, open_model
from ._usage import UsageError, check_paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='checkpoint, or timm name of an untrained network (condensenetv2_a)')
    parser.add_argument('other', nargs='?', help='second checkpoint or name, drawn beside it')
    parser.add_argument('--out', type=Path, default=Path('heatmap'), help='folder to write to (default heatmap)')
    parser.add_argument('--format', choices=('png', 'svg', 'pdf'), default='png', help='of the pictures (default png)')
    parser.add_argument('--titles', nargs='+', help='name of each model in the pictures')
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Draw every kind of map that a model has, and write the numbers beside it."""
    from ..analysis import connection_map, plot_maps
    from ..analysis.heatmap import write_csv
    from ..analysis.heatmap_trace import trace

    names = [name for name in (args.model, args.other) if name]
    if args.titles and len(args.titles) != len(names):
        raise UsageError(f'--titles gives {len(args.titles)} names for {len(names)} models; give one for each.')
    check_paths([args.out / f'{kind}.{ending}' for kind in ('lgc', 'sfr') for ending in (args.format, 'csv')], names)
    sources = [open_model(name, args) for name in names]
    titles = args.titles or [source.name for source in sources]
    kinds = [{use.kind for use in trace(source.model).uses} for source in sources]
    if not any(kinds):
        raise ValueError(f'{" and ".join(names)} have neither learned group convolution nor reactivation to draw.')
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in ('lgc', 'sfr'):
        maps = [connection_map(s.model, kind, title) for title, s, own in zip(titles, sources, kinds) if kind in own]
        if maps:
            plot_maps(maps, args.out / f'{kind}.{args.format}')
            write_csv(maps, args.out / f'{kind}.csv')
            print(f'{args.out / kind}.{args.format} and .csv: {", ".join(m.title for m in maps)}')

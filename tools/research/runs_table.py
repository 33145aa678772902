"""``tools/research/compare_runs.py``: trains what is missing of a list of runs, then prints its table."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Optional

import torch

from cnv2_plugin.archs import closest

from . import latency, train_time
from .config_runs import FILES, ConfigRun
from .plot import Point, plot_runs
from .runs import NetworkRun, Place, complete_all, finished
from .suites import SUITES
from .tables import accuracies, markdown, mean_and_each, network_table, replace_table

RESULTS = Path(__file__).parent / 'results/fashion_mnist.csv'


def main(argv: Optional[list[str]] = None) -> int:
    """Do what is missing, then print the table; returns the exit status."""
    args = arguments().parse_args(argv)
    torch.set_num_threads(1)
    try:
        compare_suites(args) if all(target in SUITES for target in args.runs) else compare_configs(args)
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f'compare_runs: {error}', file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description='Trains what is missing of several runs and prints one Markdown table.'
    )
    parser.add_argument('runs', nargs='+', metavar='SUITE|CONFIG',
                        help=f'configs, or one or several of {", ".join(SUITES)}')  # fmt: skip
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--only', nargs='+', metavar='NAME', help='of the suites, these runs only')
    parser.add_argument('--table', action='store_true', help='train nothing: the table of what is there')
    parser.add_argument(
        '--latency',
        action='store_true',
        help='of the suites, measure the finished networks as exported, on an idle machine',
    )
    parser.add_argument(
        '--training-time', action='store_true', help='of the suites, measure how long they train, on an idle machine'
    )
    parser.add_argument('--rounds', type=int, default=200, help='of what is measured (default: 200)')
    parser.add_argument(
        '--plot', type=Path, metavar='PNG', help='of the suites, accuracy over multiply-adds and latency'
    )
    parser.add_argument('--fashion-mnist', type=Path, default=Path('data/fashion_mnist'),
                        help='folder that tools/prepare_fashion_mnist.py filled')  # fmt: skip
    parser.add_argument('--results', type=Path, help=f'CSV file of the results; of suites {RESULTS.name}')
    parser.add_argument('--device', default='cpu', help='of the suites, that trains (default: cpu)')
    parser.add_argument('--work-dirs', type=Path, default=Path('work_dirs'))
    configs = parser.add_argument_group('configs')
    configs.add_argument('--input', nargs=3, type=int, metavar=('C', 'H', 'W'), help='size of an image, to count')
    configs.add_argument('--metrics', nargs='+', default=['accuracy/top1'])
    configs.add_argument('--page', nargs=2, metavar=('FILE', 'MARK'), help='page that takes the table too, between '
                         '"<!-- MARK: begin -->" and "<!-- MARK: end -->"')  # fmt: skip
    configs.add_argument('--cfg-options', nargs='+', default=[])
    return parser


def compare_suites(args: argparse.Namespace) -> None:
    """Networks trained in plain PyTorch: seed 0 of every run first, then the next seed."""
    runs = list({run.name: run for target in args.runs for run in SUITES[target]()}.values())
    if args.only:
        names = [run.name for run in runs]
        unknown = [name for name in args.only if name not in names]
        if unknown:
            raise ValueError(f'there is no run {unknown[0]}; did you mean {", ".join(closest(unknown[0], names))}?')
        runs = [run for run in runs if run.name in args.only]
    place = Place(
        args.results or RESULTS, args.work_dirs / 'runs', args.fashion_mnist,
        f'python tools/research/compare_runs.py {shlex.join(args.runs)}', args.device,
    )  # fmt: skip
    if not args.table:
        complete_all([(run, seed) for seed in args.seeds for run in runs], place)
    if args.latency:
        latency.measure(runs, args.seeds[0], place, args.rounds)
    if args.training_time:
        train_time.measure(runs, place, args.rounds)
    show_suites(runs, args.seeds, place, args.plot)


def show_suites(runs: list[NetworkRun], seeds: list[int], place: Place, picture: Optional[Path]) -> None:
    """Print the table of what is there, and write the picture where one is wanted."""
    times = latency.measured(place)
    found, points = [], []
    for run in runs:
        figures = [one for seed in seeds if (one := finished(run, seed, place)) is not None]
        found.append((f'{run.name}: {run.note}' if run.note else run.name, figures))
        if figures:
            fastest = min(times.get(run.name, {}).values(), default=None)
            points.append(Point(run.name, accuracies(figures), figures[0]['mult_adds'], fastest))
    print(network_table(found, times, train_time.measured(place)), end='')
    if picture is not None:
        plot_runs(points, picture)


def compare_configs(args: argparse.Namespace) -> None:
    """OpenMMLab configs, trained and tested by ``cnv2 train`` and ``cnv2 test``."""
    missing = [target for target in args.runs if not Path(target).is_file()]
    if missing:
        close = ', '.join(closest(missing[0], SUITES))
        raise ValueError(f'{missing[0]} is neither a config nor a suite (did you mean {close}?); --help lists all.')
    if args.input is None:
        raise ValueError('configs need --input C H W, the size of the images that they are counted for.')
    runs = [ConfigRun(Path(target), tuple(args.cfg_options)) for target in args.runs]
    place = Place(args.results or args.work_dirs / 'results.csv', args.work_dirs)
    if not args.table:
        complete_all([(run, seed) for seed in args.seeds for run in runs], place)
    found = {run: [one for seed in args.seeds if (one := finished(run, seed, place)) is not None] for run in runs}
    files = [form for form in FILES if any(form in one for figures in found.values() for one in figures)]
    rows = [_config_row(run, figures, files, args) for run, figures in found.items() if figures]
    header = ['config', 'multiply-adds (M)', 'parameters (k)', 'of training form (k)']
    for metric in args.metrics:
        header += [f'{metric}, as trained', 'condensed', *(f'{form} file' for form in files)]
    table = markdown([*header, 'training, CPU seconds'], rows)
    print(table, end='')
    if args.page:
        replace_table(table, Path(args.page[0]), args.page[1])


def _config_row(run: ConfigRun, figures: list[dict], files: list[str], args: argparse.Namespace) -> list[str]:
    cost = run.cost(tuple(args.input))
    cells = [run.name, f'{cost["mult_adds"] / 1e6:.3f}', f'{cost["params"] / 1e3:.1f}',
             f'{cost["params_unpruned"] / 1e3:.1f}']  # fmt: skip
    for metric in args.metrics:
        for form in ('trained', 'condensed', *files):
            cells.append(mean_and_each([one[form][metric] for one in figures if form in one]))
    return [*cells, ' / '.join(f'{one["seconds"]:.0f}' for one in figures)]

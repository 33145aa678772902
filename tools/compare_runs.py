"""Trains configs with several seeds, tests them as trained and condensed, and prints one Markdown table.

Every run writes to ``work_dirs/<config>/seed_<n>``. What is finished is not done again, so the table alone comes from
calling it once more.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from cnv2_plugin.checkpoints import atomic_path
from cnv2_plugin.commands._tables import print_table

TOOLS = Path(__file__).parent


def main() -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--input', nargs=3, type=int, required=True, metavar=('C', 'H', 'W'))
    parser.add_argument('--metrics', nargs='+', default=['accuracy/top1'])
    parser.add_argument('--work-dirs', type=Path, default=Path('work_dirs'))
    parser.add_argument('--cfg-options', nargs='+', default=[])
    args = parser.parse_args()
    for seed in args.seeds:
        for config in args.configs:
            complete(config, args.work_dirs / config.stem / f'seed_{seed}', seed, args.cfg_options)
    rows = [row(config, args) for config in args.configs]
    header = ['config', 'multiply-adds (M)', 'parameters (k)', 'of training form (k)']
    for metric in args.metrics:
        header += [f'{metric}, as trained', 'condensed']
    print_table(f'seeds {", ".join(map(str, args.seeds))}', [*header, 'training, CPU seconds'], rows, markdown=True)


def complete(config: Path, folder: Path, seed: int, options: list[str]) -> None:
    """Train and test what the folder does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    options = [f'randomness.seed={seed}', *options]
    times = folder / 'training_time.json'
    if not times.exists():
        start, used = time.time(), cpu_seconds()
        call('train', config, '--work-dir', folder, '--cfg-options', *options)
        write(times, dict(wall=time.time() - start, cpu=cpu_seconds() - used))
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    for form, flags in (('trained', []), ('condensed', ['--deploy'])):
        metrics = folder / f'metrics_{form}.json'
        if not metrics.exists():
            call(
                'test',
                config,
                checkpoint,
                '--work-dir',
                folder / form,
                '--out',
                metrics,
                *flags,
                '--cfg-options',
                *options,
            )


def call(command: str, *arguments) -> None:
    """Run ``cnv2 train`` or ``cnv2 test`` with one thread."""
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    subprocess.run([sys.executable, TOOLS / f'{command}.py', *map(str, arguments)], check=True, env=environment)


def cpu_seconds() -> float:
    """Processor time of the finished child processes: unlike wall time, other work on the machine adds little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def write(path: Path, values: dict) -> None:
    """Write JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + '\n')


def row(config: Path, args: argparse.Namespace) -> list[str]:
    """One line of the table: the costs of the network, and each seed's figures."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from cnv2_plugin.analysis import count_cost

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(option.split('=', 1) for option in args.cfg_options if option.startswith('model.')))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        cost = count_cost(MODELS.build(cfg.model), tuple(args.input))
    cells = [
        config.stem,
        f'{cost.mult_adds_pruned / 1e6:.3f}',
        f'{cost.params_pruned / 1e3:.1f}',
        f'{cost.params / 1e3:.1f}',
    ]
    folders = [args.work_dirs / config.stem / f'seed_{seed}' for seed in args.seeds]
    for metric in args.metrics:
        for form in ('trained', 'condensed'):
            values = [json.loads((folder / f'metrics_{form}.json').read_text())[metric] for folder in folders]
            cells.append(' / '.join(f'{value:#.4g}' for value in values))
    seconds = [json.loads((folder / 'training_time.json').read_text())['cpu'] for folder in folders]
    return [*cells, ' / '.join(f'{value:.0f}' for value in seconds)]


if __name__ == '__main__':
    main()

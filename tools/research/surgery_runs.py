"""``compare_surgery.py``: fine-tunes one pretrained network dense, with learned groups, and with reactivation.

For each data set and seed a network of timm, by default a small DenseNet, is trained on the first half of the training
images. Copies of it are then fine-tuned on all of them: as it is, after ``to_learned_groups``, and after
``to_learned_groups`` and ``add_reactivation``; where asked for also with learned groups in the layers that ONNX
Runtime computes faster then, with random groups, and with fewer channels at equal multiply-adds. All get the same
number of steps and the same batches. By ``--recipe papers`` all have one schedule; by ``--recipe ours`` each, the
dense one as well, learns from the dense network of the papers' schedule, with our recipe's learning rate and stages.
"""

import argparse
import hashlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Optional

import matplotlib
import torch
from torch import nn
from tqdm import tqdm

from cnv2_plugin.benchmark import Measurement, benchmark, machine, random_finished
from cnv2_plugin.checkpoints import atomic_path
from cnv2_plugin.deploy import RuntimeLatency
from cnv2_plugin.sparsify import plan_learned_groups

from .arms import ARMS, INPUT_SIZE, NETWORKS, Options
from .data import NAMES
from .recipe import Recipe
from .results_file import add_row, read_rows
from .runs import Place, complete
from .suites import OURS
from .surgery_run import SurgeryRun
from .tables import markdown
from .train import sparse_layers

EPOCHS = {'digits': 12, 'fashion-mnist': 5}
PRETRAINING = Recipe(rate=0.1, warmup=0.1, label_smoothing=0.05, flip=False)
FINE_TUNING = replace(PRETRAINING, rate=0.05)
MARKERS = 'os^Dv'
RESULTS = Path(__file__).parent / 'results/surgery.csv'
NETWORK_NOTES = {
    'densenet': 'timm densenet121 with growth_rate=growth and block_config=blocks',
    'mobilenetv2_100': 'timm mobilenetv2_100, stride 1 in the stem',
}


def main(argv: Optional[list[str]] = None) -> int:
    """Train what is missing, measure, print and write."""
    args = arguments().parse_args(argv)
    args.command = (
        f'python tools/research/compare_surgery.py {shlex.join(sys.argv[1:] if argv is None else argv)}'.strip()
    )
    torch.set_num_threads(1)
    try:
        figures = {name: compare(name, args) for name in args.datasets}
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f'compare_surgery: {error}', file=sys.stderr)
        return 1
    text = table(figures)
    outcome = dict(
        settings={key: value for key, value in vars(args).items() if key not in ('out', 'results', 'fashion_mnist')},
        network=NETWORK_NOTES.get(args.network, f'timm {args.network}'), input_size=INPUT_SIZE,
        machine=machine(), datasets=figures,
    )  # fmt: skip
    for file, content in (('table.md', text), ('figures.json', json.dumps(outcome, indent=1) + '\n')):
        with atomic_path(args.out / file) as temporary:
            temporary.write_text(content)
    plot(figures, args.out / 'accuracy.png')
    print(text, end='')
    return 0


def arguments() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description='Fine-tunes one pretrained network dense, with learned groups, and with reactivation.'
    )
    parser.add_argument('--datasets', nargs='+', choices=NAMES, default=list(NAMES))
    parser.add_argument('--fashion-mnist', type=Path, default=Path('data/fashion_mnist'),
                        help='folder that tools/prepare_fashion_mnist.py filled')  # fmt: skip
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--train-images', type=int, default=4000, help='at most; digits has 1347')
    parser.add_argument('--test-images', type=int, default=4000, help='at most; digits has 450')
    parser.add_argument('--epochs', type=int, help='of pretraining and of fine-tuning (default: 12 digits, 5 Fashion)')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--network', choices=NETWORKS, default='densenet')
    parser.add_argument('--arms', nargs='+', choices=ARMS, default=['dense', 'groups', 'reactivation'],
                        help='"latency": learned groups where they are faster in ONNX Runtime; "random": groups drawn '
                             'at random, in the layers of "latency" or else of "groups"; "channels": torch-pruning at '
                             'the multiply-adds of "latency"; dense is always among them')  # fmt: skip
    parser.add_argument('--recipe', nargs='+', choices=['papers', 'ours'], default=['papers'],
                        help='one or both; "ours": stages in the first quarter, the learning rate rewound, distilled '
                             'from the dense network of the papers\' schedule (default: papers)')  # fmt: skip
    parser.add_argument('--at-most', type=float, help='share of the latency that "latency" comes down to')
    parser.add_argument('--growth', type=int, default=16, help='features that a layer of the DenseNet adds')
    parser.add_argument('--blocks', nargs='+', type=int, default=[4, 6, 6], help='layers of each of its blocks')
    parser.add_argument('--groups', type=int, default=4)
    parser.add_argument('--factor', type=int, default=4, help='C of the learned groups and S of the reactivation')
    parser.add_argument('--rounds', type=int, default=100, help='rounds of the latency measurement')
    parser.add_argument('--device', default='cpu', help='that trains (default: cpu)')
    parser.add_argument('--results', type=Path, default=RESULTS,
                        help=f'CSV file of finished runs (default: {RESULTS.name})')  # fmt: skip
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/surgery'), help='folder of table, figures, picture and checkpoints'
    )
    return parser


def compare(dataset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of every arm and seed, multiply-adds, and latency."""
    start, arms = runs(dataset, args)
    place = Place(args.results, args.out / dataset, args.fashion_mnist, args.command, args.device)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in args.seeds:
        pretraining = complete(start, seed, place)
        for arm, run in arms.items():
            found[arm].append(complete(run, seed, place))
    first = found['dense'][0]
    figures = dict(
        train_images=first['train_images'], test_images=first['test_images'], steps=first['steps'],
        pretrain_steps=pretraining['steps'], arms={arm: _of_all_seeds(each) for arm, each in found.items()},
    )  # fmt: skip
    for row in measured({arm: run.untrained() for arm, run in arms.items()}, args.rounds):
        figures['arms'][row.model].setdefault('latency', {})[row.form] = row.as_dict()
    return figures


def runs(dataset: str, args: argparse.Namespace) -> tuple[SurgeryRun, dict[str, SurgeryRun]]:
    """The pretraining, and the runs that go on from it, by arm; those of our recipe end in ``-ours``."""
    settings = dict(images=dataset, train_images=args.train_images, test_images=args.test_images)
    network = Options(args.growth, tuple(args.blocks), network=args.network)
    options = replace(network, groups=args.groups, factor=args.factor)
    length = dict(epochs=args.epochs or EPOCHS[dataset], batch_size=args.batch_size)
    start = SurgeryRun('pretrained', replace(PRETRAINING, **length), options=network, **settings)
    recipe = replace(FINE_TUNING, **length)
    dense = SurgeryRun('dense', recipe, options=network, start=start, **settings)
    taught = replace(
        recipe, sparsifier=OURS.sparsifier, rewind=OURS.rewind, distill=OURS.distill, recalibrate=OURS.recalibrate
    )
    arms = {'dense': dense}
    for name in args.recipe:
        suffix, chosen, teacher = ('-ours', taught, dense) if name == 'ours' else ('', recipe, None)
        for arm in (arm for arm in ARMS if arm == 'dense' or arm in args.arms):
            own = replace(chosen, masks='random') if arm == 'random' else chosen
            arms[arm + suffix] = replace(
                dense, arm=arm, options=options_of(arm, network, options, args), recipe=own, teacher=teacher
            )
    return start, arms


def options_of(arm: str, network: Options, options: Options, args: argparse.Namespace) -> Options:
    """Network and surgery of an arm; those that are not pruned in groups are told by the network alone."""
    if arm == 'dense':
        return network
    if arm in ('groups', 'reactivation') or (arm == 'random' and 'latency' not in args.arms):
        return options
    layers, mult_adds = faster_layers(options, args)
    return replace(network, mult_adds=mult_adds) if arm == 'channels' else replace(options, layers=layers)


def faster_layers(options: Options, args: argparse.Namespace) -> tuple[tuple[str, ...], int]:
    """Layers that are faster with learned groups in ONNX Runtime, and the multiply-adds with them.

    They are measured once and kept in a file, so that a later sitting has the same.
    """
    asked = dict(options.settings(), at_most=args.at_most)
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    path = args.results.with_name(f'{args.results.stem}_faster_layers.csv')
    found = next((row for row in read_rows(path) if row['name'] == name), None)
    if found is None:
        latency = RuntimeLatency(rounds=args.rounds, progress=lambda text: print(text, file=sys.stderr))
        report = plan_learned_groups(
            options.build().eval(), options.groups, options.factor, input_size=INPUT_SIZE,
            target='latency', at_most=args.at_most, latency=latency,
        )  # fmt: skip
        found = dict(
            name=name, asked=asked, layers=[layer.name for layer in report.layers], mult_adds=report.mult_adds_after,
            machine=machine(), report=str(report).splitlines(), timings=[vars(layer) for layer in report.layers],
        )  # fmt: skip
        add_row(path, found)
    return tuple(found['layers']), found['mult_adds']


def _of_all_seeds(each: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(
        accuracy=[one['accuracy'] for one in each], mult_adds=each[0]['mult_adds'], params=each[0]['params'],
        condensed_difference=max(one['condensed_difference'] for one in each),
    )  # fmt: skip


def measured(models: dict[str, nn.Module], rounds: int) -> list[Measurement]:
    """Latency in ONNX Runtime, one image, one thread, all networks and forms in the same interleaved rounds.

    Each measured call follows one of the same network: the weights of a ResNet-26 are larger than most caches.
    """
    pruned = {arm: random_finished(model) for arm, model in models.items() if sparse_layers(model)}
    plain = {arm: model for arm, model in models.items() if arm not in pruned}
    with tqdm(desc='latency', unit='report') as progress:
        return benchmark(
            pruned, ('condensed', 'lowered'), ('onnxruntime',), INPUT_SIZE, rounds=rounds,
            peers=plain, warmup_each_round=1, progress=lambda text: (progress.set_postfix_str(text), progress.update()),
        )  # fmt: skip


def latency(arm: dict) -> tuple[Optional[float], ...]:
    """Shortest latency in milliseconds of the condensed form and of the exported one; the same of a dense network."""
    timings = {form: row['timing']['min'] for form, row in arm['latency'].items()}
    plain = timings.get('as published')
    return timings.get('condensed', plain), timings.get('lowered', plain)


def label(arm: str) -> str:
    """What tables call an arm, with its recipe where that is ours."""
    name, _, recipe = arm.partition('-')
    return f'{ARMS[name].label}, our recipe' if recipe else ARMS[name].label


def table(figures: dict) -> str:
    """Everything as Markdown."""
    header = ['data', 'network', 'accuracy, mean (each seed)', 'multiply-adds (M)', 'parameters (k)', 'condensed (ms)',
              'ratio', 'as exported (ms)', 'ratio']  # fmt: skip
    rows, notes = [], []
    for dataset, found in figures.items():
        dense = latency(found['arms']['dense'])
        for arm, values in found['arms'].items():
            each = ' / '.join(f'{a:.2f}' for a in values['accuracy'])
            times = [cell for t, d in zip(latency(values), dense) for cell in (f'{t:.3f}', f'{t / d:.2f}')]
            rows.append([
                dataset, label(arm), f'{fmean(values["accuracy"]):.2f} ({each})',
                f'{values["mult_adds"] / 1e6:.2f}', f'{values["params"] / 1e3:.0f}', *times,
            ])  # fmt: skip
        notes.append(
            f'{dataset}: {found["train_images"]} training and {found["test_images"]} test images, '
            f'{found["pretrain_steps"]} steps of pretraining on half of them, then {found["steps"]} steps in each row.'
        )
    return '\n'.join([markdown(header, rows, texts=2), *(f'{note}\n' for note in notes)])


def plot(figures: dict, path: Path) -> None:
    """Accuracy over multiply-adds: a dot a seed, a bar at the mean, with the latency ratio beside it."""
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(5.2 * len(figures), 4), layout='constrained', squeeze=False)
    for axis, (dataset, found) in zip(axes[0], figures.items()):
        dense = latency(found['arms']['dense'])[1]
        for i, (arm, values) in enumerate(found['arms'].items()):
            colour, marker = f'C{i}', MARKERS[i % len(MARKERS)]
            work, mean = values['mult_adds'] / 1e6, fmean(values['accuracy'])
            text = f'{label(arm)}\n({latency(values)[1] / dense:.2f} of the latency, as exported)'
            axis.scatter([work] * len(values['accuracy']), values['accuracy'], color=colour, marker=marker, label=text)
            axis.scatter([work], [mean], color=colour, marker='_', s=400)
        axis.set(title=dataset, xlabel='multiply-adds (M)', ylabel='test accuracy (%)')
        axis.grid(alpha=0.3)
        axis.legend(fontsize='x-small')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)

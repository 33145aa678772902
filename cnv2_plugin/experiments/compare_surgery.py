"""Fine-tunes one pretrained network dense, with learned groups, and with learned groups and reactivation.

For each data set and seed a small DenseNet of timm is trained on the first half of the training images. Copies of it
are then fine-tuned on all of them: as it is, after ``to_learned_groups``, and after ``to_learned_groups`` and
``add_reactivation``. All three get the same number of steps, the same batches and the same schedule. Prints a Markdown
table and writes it with all figures and a picture. What is trained already is not trained again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Optional

import matplotlib
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.benchmark import Measurement, benchmark, machine
from cnv2_plugin.checkpoints import atomic_path, load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import condense, verify
from cnv2_plugin.sparsify import StagedSparsifier, add_reactivation, to_learned_groups

INPUT_SIZE = (1, 32, 32)
ARMS = {
    'dense': 'dense',
    'groups': 'learned groups',
    'reactivation': 'learned groups and reactivation',
}

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """Images ``(N, 1, 32, 32)`` with labels, and how long to train on them."""

    train: Images
    test: Images
    pretrain_epochs: int
    epochs: int


def digits(args: argparse.Namespace) -> Data:
    """scikit-learn's digits at 32x32: three quarters to train, one to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16
    images = F.interpolate(images, size=INPUT_SIZE[1:], mode='bilinear', align_corners=False)
    parts = train_test_split(np.arange(len(images)), test_size=0.25, random_state=0, stratify=digits.target)
    labels = torch.from_numpy(digits.target)
    return shortened(*((images[part], labels[part]) for part in parts), 12, 12, args)


def fashion_mnist(args: argparse.Namespace) -> Data:
    """Fashion-MNIST, padded to 32x32, as ``tools/prepare_fashion_mnist.py`` laid it.

    Raises:
        FileNotFoundError: the files are missing.
    """
    parts = []
    for prefix in ('train', 't10k'):
        paths = [args.fashion_mnist / f'{prefix}-{kind}-ubyte' for kind in ('images-idx3', 'labels-idx1')]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing:
            raise FileNotFoundError(
                f'{missing} is missing; lay it with tools/prepare_fashion_mnist.py {args.fashion_mnist}.'
            )
        pixels = np.frombuffer(paths[0].read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(paths[1].read_bytes(), np.uint8, offset=8)
        chosen = np.random.default_rng(0).permutation(len(labels))[: max(args.train_images, args.test_images)]
        images = F.pad(torch.from_numpy(pixels[chosen].astype(np.float32)) / 255, (2, 2, 2, 2))
        parts.append((images, torch.from_numpy(labels[chosen].astype(np.int64))))
    return shortened(*parts, 5, 5, args)


DATA = {'digits': digits, 'fashion-mnist': fashion_mnist}


def shortened(train: Images, test: Images, pretrain_epochs: int, epochs: int, args: argparse.Namespace) -> Data:
    """Normalised images, as many as wanted, and the wanted epochs."""
    train, test = (
        tuple(x[:count] for x in part) for part, count in ((train, args.train_images), (test, args.test_images))
    )
    mean, std = train[0].mean(), train[0].std()
    train, test = (((images - mean) / std, labels) for images, labels in (train, test))
    return Data(train, test, args.epochs or pretrain_epochs, args.epochs or epochs)


def main(argv: Optional[list[str]] = None) -> int:
    """Train what is missing, measure, print and write."""
    args = arguments().parse_args(argv)
    torch.set_num_threads(1)
    try:
        figures = {name: compare(name, DATA[name](args), args) for name in args.datasets}
    except (OSError, ValueError, RuntimeError) as error:
        print(f'compare_surgery: {error}', file=sys.stderr)
        return 1
    text = table(figures)
    outcome = dict(
        settings={key: value for key, value in vars(args).items() if key not in ('out', 'fashion_mnist')},
        network='timm densenet121 with growth_rate=growth and block_config=blocks', input_size=INPUT_SIZE,
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--datasets', nargs='+', choices=DATA, default=list(DATA))
    parser.add_argument('--fashion-mnist', type=Path, default=Path('data/fashion_mnist'),
                        help='folder that tools/prepare_fashion_mnist.py filled')  # fmt: skip
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--train-images', type=int, default=4000, help='at most; digits has 1347')
    parser.add_argument('--test-images', type=int, default=4000, help='at most; digits has 450')
    parser.add_argument('--epochs', type=int, help='of pretraining and of fine-tuning (default: 12 digits, 5 Fashion)')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--growth', type=int, default=16, help='features that a layer of the DenseNet adds')
    parser.add_argument('--blocks', nargs='+', type=int, default=[4, 6, 6], help='layers of each of its blocks')
    parser.add_argument('--groups', type=int, default=4)
    parser.add_argument('--factor', type=int, default=4, help='C of the learned groups and S of the reactivation')
    parser.add_argument('--rounds', type=int, default=100, help='rounds of the latency measurement')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/surgery'))
    return parser


def compare(dataset: str, data: Data, args: argparse.Namespace) -> dict:
    """Accuracy of every arm and seed, multiply-adds, and the latency of the first seed's networks."""
    masked = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        folder = args.out / dataset / f'seed_{seed}'
        folder.mkdir(parents=True, exist_ok=True)
        start = pretrained(dataset, data, seed, folder, args)
        for arm in ARMS:
            masked[arm].append(fine_tuned(start, arm, dataset, data, seed, folder, args))
    steps = data.epochs * (len(data.train[0]) // args.batch_size)
    found = dict(
        train_images=len(data.train[0]), test_images=len(data.test[0]), steps=steps,
        pretrain_steps=data.pretrain_epochs * (len(data.train[0]) // 2 // args.batch_size),
        arms={arm: evaluated(models, data) for arm, models in masked.items()},
    )  # fmt: skip
    for row in measured({arm: models[0] for arm, models in masked.items()}, args.rounds):
        found['arms'][row.model].setdefault('latency', {})[row.form] = row.as_dict()
    return found


def network(args: argparse.Namespace) -> nn.Module:
    """The network before any training."""
    options = dict(growth_rate=args.growth, block_config=tuple(args.blocks))
    return timm.create_model('densenet121', in_chans=1, num_classes=10, **options)


def operate(model: nn.Module, arm: str, args: argparse.Namespace) -> int:
    """Do the surgery of an arm, in place; returns the multiply-adds that it predicts."""
    predicted = count_cost(model, INPUT_SIZE).mult_adds
    if arm != 'dense':
        predicted = to_learned_groups(model, args.groups, args.factor, input_size=INPUT_SIZE).mult_adds_after
    if arm == 'reactivation':
        added = add_reactivation(model, args.groups, args.factor, min_channels=args.growth, input_size=INPUT_SIZE)
        predicted += added.mult_adds_after - added.mult_adds_before
    return predicted


def pretrained(dataset: str, data: Data, seed: int, folder: Path, args: argparse.Namespace) -> nn.Module:
    """The network that all arms of a seed start from."""
    torch.manual_seed(seed)
    model = network(args)
    half = tuple(x[: len(data.train[0]) // 2] for x in data.train)
    train_once(model, half, data.pretrain_epochs, 0.1, seed, folder / 'pretrained.pth', f'{dataset}, pretraining', args)
    return model


def fine_tuned(
    start: nn.Module, arm: str, dataset: str, data: Data, seed: int, folder: Path, args: argparse.Namespace
) -> nn.Module:
    """One arm, trained.

    Raises:
        RuntimeError: the pruned network costs other than what surgery predicted.
    """
    model = deepcopy(start)
    predicted = operate(model, arm, args)
    train_once(model, data.train, data.epochs, 0.05, seed, folder / f'{arm}.pth', f'{dataset}, {ARMS[arm]}', args)
    counted = count_cost(model, INPUT_SIZE).mult_adds_pruned
    if counted != predicted:
        raise RuntimeError(f'{dataset}, {arm}: {counted} multiply-adds are counted where {predicted} were predicted.')
    return model.eval()


def train_once(model, images: Images, epochs: int, rate: float, seed: int, path: Path, title: str, args) -> None:
    """Train in place and write the checkpoint, or read it where these very settings are trained already."""
    settings = dict(
        epochs=epochs, rate=rate, seed=seed, images=len(images[0]), batch_size=args.batch_size,
        groups=args.groups, factor=args.factor, growth=args.growth, blocks=args.blocks,
    )  # fmt: skip
    if path.exists():
        checkpoint = load_checkpoint(path)
        if checkpoint['meta'] == settings:
            model.load_state_dict(checkpoint['state_dict'])
            return
    train(model, images, epochs, rate, seed, f'{title}, seed {seed}', args.batch_size)
    save_checkpoint(model.state_dict(), path, settings)


def train(model: nn.Module, images: Images, epochs: int, rate: float, seed: int, title: str, batch_size: int) -> None:
    """Train in place, pruning in stages where a layer can be pruned.

    Raises:
        ValueError: there are fewer images than a batch takes.
    """
    steps = len(images[0]) // batch_size
    if not steps:
        raise ValueError(f'{len(images[0])} training images do not fill a batch of {batch_size}; give more of them.')
    learns_groups = any(hasattr(module, 'mask') for module in model.modules())
    sparsifier = StagedSparsifier(model, total_steps=epochs * steps) if learns_groups else None
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.1)
    model.train().to(memory_format=torch.channels_last)
    progress = tqdm(batches(images, epochs, batch_size, seed), title, epochs * steps, unit='step')
    for x, y in progress:
        loss = F.cross_entropy(model(x), y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if sparsifier:
            sparsifier.step()
    model.eval().to(memory_format=torch.contiguous_format)


def batches(images: Images, epochs: int, batch_size: int, seed: int) -> Iterator[Images]:
    """Shuffled batches, each moved by up to 2 pixels; they depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(images[0]), generator=generator)
        for chosen in order[: len(order) // batch_size * batch_size].split(batch_size):
            shift = (torch.randint(5, (2,), generator=generator) - 2).tolist()
            x = torch.roll(images[0][chosen], shift, (2, 3))
            yield x.contiguous(memory_format=torch.channels_last), images[1][chosen]


def evaluated(models: list[nn.Module], data: Data) -> dict:
    """Accuracy and cost of the trained networks of one arm, condensed.

    Raises:
        VerificationError: a condensed network does not compute what the masked one does.
        RuntimeError: masked and condensed networks do not cost the same.
    """
    accuracy, differences, costs = [], [], []
    for model in models:
        condensed = condense(model) if any(hasattr(m, 'mask') for m in model.modules()) else model
        report = verify(model, condensed, INPUT_SIZE)
        report.check(1e-5, 'the condensed network')
        differences.append(report.max_rel)
        costs.append((count_cost(model, INPUT_SIZE), count_cost(condensed, INPUT_SIZE)))
        if costs[-1][0].mult_adds_pruned != costs[-1][1].mult_adds:
            raise RuntimeError('the condensed network has other multiply-adds than its masks leave.')
        with torch.no_grad():
            logits = torch.cat([condensed(x) for x in data.test[0].split(256)])
        accuracy.append(round((logits.argmax(1) == data.test[1]).float().mean().item() * 100, 2))
    cost = costs[0][1]
    return dict(accuracy=accuracy, mult_adds=cost.mult_adds, params=cost.params, condensed_difference=max(differences))


def measured(models: dict[str, nn.Module], rounds: int) -> list[Measurement]:
    """Latency in ONNX Runtime, one image, one thread, all networks and forms in the same interleaved rounds."""
    pruned = {arm: model for arm, model in models.items() if arm != 'dense'}
    with tqdm(desc='latency', unit='report') as progress:
        return benchmark(
            pruned, ('condensed', 'optimised'), ('onnxruntime',), INPUT_SIZE, rounds=rounds,
            peers={'dense': models['dense']}, progress=lambda text: (progress.set_postfix_str(text), progress.update()),
        )  # fmt: skip


def latency(arm: dict) -> tuple[Optional[float], ...]:
    """Shortest latency in milliseconds of the condensed form and of the exported one; the same of a dense network."""
    timings = {form: row['timing']['min'] for form, row in arm['latency'].items()}
    plain = timings.get('as published')
    return timings.get('condensed', plain), timings.get('optimised', plain)


def table(figures: dict) -> str:
    """Everything as Markdown."""
    lines = [
        '| data | network | accuracy, mean (each seed) | multiply-adds (M) | parameters (k) | condensed (ms) | ratio '
        '| as exported (ms) | ratio |',
        '|---|---|---:|---:|---:|---:|---:|---:|---:|',
    ]
    for dataset, found in figures.items():
        dense = latency(found['arms']['dense'])
        for arm, values in found['arms'].items():
            accuracy = f'{fmean(values["accuracy"]):.2f} ({" / ".join(f"{a:.2f}" for a in values["accuracy"])})'
            times = ' | '.join(f'{t:.3f} | {t / d:.2f}' for t, d in zip(latency(values), dense))
            costs = f'{values["mult_adds"] / 1e6:.2f} | {values["params"] / 1e3:.0f}'
            lines.append(f'| {dataset} | {ARMS[arm]} | {accuracy} | {costs} | {times} |')
    for dataset, found in figures.items():
        lines += [
            '',
            f'{dataset}: {found["train_images"]} training and {found["test_images"]} test images, '
            f'{found["pretrain_steps"]} steps of pretraining on half of them, then {found["steps"]} steps in each row.',
        ]
    return '\n'.join(lines) + '\n'


def plot(figures: dict, path: Path) -> None:
    """Accuracy over multiply-adds: a dot a seed, a bar at the mean, with the latency ratio beside it."""
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(figures), figsize=(5.2 * len(figures), 4), layout='constrained', squeeze=False)
    for axis, (dataset, found) in zip(axes[0], figures.items()):
        dense = latency(found['arms']['dense'])[1]
        for (arm, values), colour, marker in zip(found['arms'].items(), ('tab:gray', 'tab:blue', 'tab:orange'), 'os^'):
            work, mean = values['mult_adds'] / 1e6, fmean(values['accuracy'])
            label = f'{ARMS[arm]}\n({latency(values)[1] / dense:.2f} of the latency, as exported)'
            axis.scatter([work] * len(values['accuracy']), values['accuracy'], color=colour, marker=marker, label=label)
            axis.scatter([work], [mean], color=colour, marker='_', s=400)
        axis.set(title=dataset, xlabel='multiply-adds (M)', ylabel='test accuracy (%)')
        axis.grid(alpha=0.3)
        axis.legend(fontsize='x-small')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


if __name__ == '__main__':
    sys.exit(main())

"""Train, prune in stages, condense, verify, export and measure a small CondenseNetV2 on scikit-learn's digits."""

import argparse
import json
import random
import time
from pathlib import Path

import matplotlib
import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F
from tqdm import tqdm

import cnv2_plugin  # noqa: F401  (registers the models with timm)
from cnv2_plugin.analysis import connection_map, count_cost, plot_maps, plot_sparsity, sparsity_report
from cnv2_plugin.benchmark import benchmark, machine
from cnv2_plugin.checkpoints import atomic_path, save_checkpoint
from cnv2_plugin.deploy import condense, export_onnx, verify
from cnv2_plugin.deploy.quantize import quantize_onnx
from cnv2_plugin.deploy.verify import as_runner
from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.sparsify import StagedSparsifier, recalibrate_norms

matplotlib.use('Agg')

ARCH = dict(
    layers=(2, 3, 3), growth=(8, 16, 32), groups_1x1=4, groups_3x3=4, groups_sfr=8, condense_factor=4, sparse_factor=8,
    se_from=3, hswish_from=2, head_width=128, stem_stride=2,
)  # fmt: skip
WITHOUT_V2 = dict(groups_sfr=0, se_from=None, hswish_from=None, head_width=None)
INPUT_SIZE = (1, 32, 32)
STAGES = dict(LGC=('tab:blue', '-.', 14), SFR=('tab:red', '--', 2))
"""How the stages of each kind are drawn: colour, line, and height of their names in points."""


def main() -> None:
    """Run the whole job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=40, help='rounds of the benchmark')
    parser.add_argument('--family', choices=('condensenetv2', 'condensenet'), default='condensenetv2',
                        help='condensenet: the same layers without reactivation, to compare')  # fmt: skip
    parser.add_argument('--out', type=Path, default=Path('work_dirs/quickstart'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    torch.manual_seed(0)
    started = time.perf_counter()

    train, test = load_data()
    arch = ARCH if args.family == 'condensenetv2' else {**ARCH, **WITHOUT_V2}
    model = timm.create_model(args.family, arch=arch, in_chans=1, num_classes=10)
    history = fit(model, train, test, args.epochs, args.batch_size)
    figures = dict(training_seconds=round(time.perf_counter() - started, 1), arch=arch)
    plot(history, args.out / 'training.png')
    draw(model, args.family, args.out)

    meta = dict(arch=args.family, model_kwargs=dict(arch=arch, in_chans=1, num_classes=10))
    save_checkpoint(model.state_dict(), args.out / 'trained.pth', meta)
    condensed = condense(model)
    save_checkpoint(condensed.state_dict(), args.out / 'condensed.pth', {**meta, 'deploy': True})
    exported = export_onnx(condensed, args.out / 'condensed.onnx', INPUT_SIZE, metadata=dict(arch=args.family))

    forms = dict(training=model, condensed=condensed, onnx=args.out / 'condensed.onnx')
    predictions = {name: predict(form, test[0]) for name, form in forms.items()}
    figures['accuracy'] = {name: accuracy(output, test[1]) for name, output in predictions.items()}
    figures['same_predictions'] = all(
        torch.equal(output.argmax(1), predictions['training'].argmax(1)) for output in predictions.values()
    )
    figures['max_relative_difference'] = dict(
        condensed=verify(model, condensed, INPUT_SIZE, exact=True).max_rel, onnx=exported.verification.max_rel
    )
    figures['cost'] = {name: count_cost(forms[name], INPUT_SIZE).as_dict() for name in ('training', 'condensed')}
    figures['file_bytes'] = {
        name: (args.out / file).stat().st_size
        for name, file in (('training', 'trained.pth'), ('condensed', 'condensed.pth'), ('onnx', 'condensed.onnx'))
    }
    measured = benchmark(
        {'quickstart': model}, ('training', 'condensed', 'lowered'), input_size=INPUT_SIZE, rounds=args.rounds
    )
    figures['latency'] = [measurement.as_dict() for measurement in measured]
    figures['int8'] = int8(args.out / 'condensed.onnx', args.out / 'int8.onnx', train[0], test, args.rounds)
    figures['machine'] = machine()
    figures['history'] = history
    with atomic_path(args.out / 'figures.json') as temporary:
        temporary.write_text(json.dumps(figures, indent=1))
    report(figures, args.out)


def int8(source: Path, target: Path, images, test, rounds: int) -> dict[str, float]:
    """Quantise the ONNX file, calibrated on 256 training images; what that does to accuracy, size and latency."""
    quantised = quantize_onnx(source, target, [images[:256].numpy()], rounds=rounds)
    return dict(
        accuracy=accuracy(predict(target, test[0]), test[1]), file_bytes=quantised.size,
        float32_ms=quantised.float32.min, int8_ms=quantised.int8.min,
    )  # fmt: skip


def load_data() -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Digits at 32x32 as ``(N, 1, 32, 32)`` images and labels: three quarters to train, one to test."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16
    images = F.interpolate(images, size=INPUT_SIZE[1:], mode='bilinear', align_corners=False)
    images = (images - images.mean()) / images.std()
    train_index, test_index = train_test_split(
        np.arange(len(images)), test_size=0.25, random_state=0, stratify=digits.target
    )
    labels = torch.from_numpy(digits.target)
    return tuple((images[index], labels[index]) for index in (train_index, test_index))


def fit(model, train, test, epochs: int, batch_size: int) -> dict[str, list]:
    """Train with every pruning stage in the first half; returns what happened at each epoch.

    After each stage the normalisations are measured anew on ten training batches, so that the test of that epoch is one
    of the weights that are left; training goes on as it would without. Accuracy is taken on both sides of that too.
    """
    images, labels = train
    steps = len(images) // batch_size
    sparsifier = StagedSparsifier(model, total_steps=epochs * steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * steps, pct_start=0.1)
    history = dict(loss=[], accuracy=[], kept=[], stages=[])
    before = reached(model)
    for epoch in tqdm(range(epochs), desc='training', unit='epoch'):
        model.train()
        total = 0.0
        for i, batch in enumerate(torch.randperm(len(images))[: steps * batch_size].split(batch_size)):
            loss = F.cross_entropy(model(shift(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            if sparsifier.step():
                running = accuracy(predict(model, test[0]), test[1])
                model.train()
                recalibrate_norms(model, (shift(some) for some in images.split(batch_size)), num_batches=10)
                measured = accuracy(predict(model, test[0]), test[1])
                model.train()
                stages = reached(model)
                history['stages'] += [
                    dict(epoch=epoch + (i + 1) / steps, kind=kind, stage=stages[kind],
                         running_statistics=running, measured_anew=measured)
                    for kind in stages if stages[kind] != before[kind]
                ]  # fmt: skip
                before = stages
            total += loss.item()
        history['loss'].append(total / steps)
        history['accuracy'].append(accuracy(predict(model, test[0]), test[1]))
        history['kept'].append(sparsifier.sparsity()['total'])
    return history


def reached(model) -> dict[str, int]:
    """Pruning stage of each kind of layer; all layers of a kind have the same."""
    kinds = {LearnedGroupConv: 'LGC', SparseFeatureReactivation: 'SFR'}
    return {kinds[type(layer)]: int(layer.stage) for layer in model.sparse_layers()}


def shift(images: torch.Tensor) -> torch.Tensor:
    """Move a batch by up to 3 pixels, the only augmentation."""
    dy, dx = random.randint(-3, 3), random.randint(-3, 3)
    return torch.roll(images, (dy, dx), (2, 3))


def predict(form, images: torch.Tensor) -> torch.Tensor:
    """Logits ``(N, classes)`` of a model or an ONNX file."""
    run = as_runner(form)
    return torch.cat([run(batch)[0] for batch in images.split(128)])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right predictions in percent."""
    return round((logits.argmax(1) == labels).float().mean().item() * 100, 2)


def plot(history: dict[str, list], path: Path) -> None:
    """Loss, accuracy and kept fraction over the epochs, with the pruning stages marked."""
    from matplotlib import pyplot as plt

    epochs = range(1, len(history['loss']) + 1)
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True, layout='constrained')
    rows = (('loss', 'training loss'), ('accuracy', 'test accuracy (%)'), ('kept', 'kept fraction'))
    for axis, (key, label) in zip(axes, rows):
        axis.plot(epochs, history[key], marker='.', color='black')
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        for stage in history['stages']:
            colour, style, _ = STAGES[stage['kind']]
            axis.axvline(stage['epoch'], color=colour, alpha=0.6, linestyle=style)
    places = [stage['epoch'] for stage in history['stages']]
    for key, label, filled in (
        ('running_statistics', 'right after a stage', 'none'),
        ('measured_anew', 'the same weights, statistics measured anew', 'tab:green'),
    ):
        values = [stage[key] for stage in history['stages']]
        axes[1].plot(places, values, 'o', color='tab:green', markerfacecolor=filled, label=label)
    axes[1].legend(loc='lower right', fontsize='small')
    for stage in history['stages']:
        colour, _, height = STAGES[stage['kind']]
        axes[0].annotate(
            f'{stage["kind"]} {stage["stage"]}', (stage['epoch'], 1), (0, height), color=colour, fontsize=9,
            xycoords=('data', 'axes fraction'), textcoords='offset points', ha='center', va='bottom',
        )  # fmt: skip
    axes[0].set_title('Pruning stages of LGC and SFR layers, then training with final masks', pad=32)
    axes[-1].set_xlabel('epoch')
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def draw(model, family: str, out: Path) -> None:
    """What the trained model reads and reactivates, and how sparse it is."""
    title = {'condensenetv2': 'CondenseNetV2 on digits', 'condensenet': 'CondenseNet on digits'}[family]
    for kind in ('lgc', 'sfr') if family == 'condensenetv2' else ('lgc',):
        plot_maps([connection_map(model, kind, title)], out / f'{kind}.png')
    plot_sparsity(sparsity_report(model), out / 'sparsity.png', title)


def report(figures: dict, out: Path) -> None:
    """Print every figure."""
    from cnv2_plugin.commands._output import print_table

    latency = {(m['form'], m['runtime']): m['timing']['min'] for m in figures['latency']}
    cost, size, right = figures['cost'], figures['file_bytes'], figures['accuracy']
    rows = [
        ['test accuracy (%)', right['training'], right['condensed'], right['onnx']],
        ['parameters', f'{cost["training"]["params"]:,}', f'{cost["condensed"]["params"]:,}', ''],
        ['multiply-adds (M)', *(f'{cost[f]["mult_adds"] / 1e6:.2f}' for f in ('training', 'condensed')), ''],
        ['file (kB)', *(f'{size[f] / 1e3:.0f}' for f in ('training', 'condensed', 'onnx'))],
        ['latency, PyTorch (ms, min)', *(f'{latency[f, "eager"]:.2f}' for f in ('training', 'condensed')), ''],
        ['latency, ONNX Runtime (ms, min)', f'{latency["training", "onnxruntime"]:.2f}', '',
         f'{latency["lowered", "onnxruntime"]:.2f}'],
    ]  # fmt: skip
    print_table('Digits at 32x32', ['', 'training form', 'condensed', 'ONNX, lowered'], rows)
    quantised = figures['int8']
    print(
        f'In int8 (not exact): {quantised["accuracy"]} % in place of {right["onnx"]} %, '
        f'{quantised["file_bytes"] / 1e3:.0f} kB in place of {size["onnx"] / 1e3:.0f} kB, latency '
        f'{quantised["int8_ms"] / quantised["float32_ms"]:.2f} times that of float32 in ONNX Runtime.'
    )
    same = 'the same' if figures['same_predictions'] else 'NOT the same'
    print(
        f'All three forms give {same} predictions; trained in {figures["training_seconds"]} s. Everything is in {out}/.'
    )


if __name__ == '__main__':
    main()

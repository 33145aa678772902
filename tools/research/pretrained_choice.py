"""What a choice of connections leaves of each pretrained layer, before any training.

The layers of the trunk see the features of test scenes as they do in the unpruned network. A choice is judged by how
much of the variance of a layer's outputs its connections explain, where each output may be scaled, as the normalisation
behind it can; the mean is over layers.
"""

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pretrained_arms import hash_of, inputs_of, most_varied_masks, plain_masks, strongest_masks, to_groups
from .results_file import read_rows, write_rows
from .tables import markdown
from .train import random_masks, sparse_layers

LABELS = {
    'magnitude': 'by magnitude (L1)',
    'activations': "by magnitude times the inputs' deviation",
    'random': 'at random',
    'plain': 'plain groups and shuffle',
}


def judge(trunk: nn.Module, pixels: Tensor, factors: list[int], seeds: list[int], command: str) -> list[dict[str, Any]]:
    """One row a factor, choice and seed; choices without chance have one seed.

    Args:
        trunk: with the weights to judge; stays as it is.
        pixels: features ``(N, 24, 16, 16)``; choices see the first half, the other one judges.
        factors: of the groups.
        seeds: of random groups.
        command: written into each row.
    """
    rows, half = [], len(pixels) // 2
    for factor in factors:
        model = deepcopy(trunk).eval()
        to_groups(model, factor)
        seen = inputs_of(model, pixels[half:])
        for choice, seed, masks in _choices(model, pixels[:half], seeds):
            shares = [explained(layer, masks[name], seen[name]) for name, layer in sparse_layers(model).items()]
            rows.append(
                dict(
                    name=f'{choice}-{factor}', seed=seed, command=command,
                    date=time.strftime('%Y-%m-%d', time.gmtime()),
                    choice=choice, factor=factor, images=len(pixels) - half, masks_hash=hash_of(masks),
                    layers=len(shares), explained=round(fmean(shares), 4),
                )
            )  # fmt: skip
    return rows


@torch.no_grad()
def explained(layer: nn.Module, mask: Tensor, inputs: Tensor) -> float:
    """Share of the variance of a layer's outputs that its kept connections explain, each output scaled at best."""
    weight = layer.conv.weight
    kept = torch.zeros_like(weight)
    layer.grouping.by_unit(kept).copy_(mask[..., None].expand_as(layer.grouping.by_unit(kept)))
    whole, part = (F.conv2d(inputs, w) for w in (weight, weight * kept))
    whole, part = (out - out.mean((0, 2, 3), keepdim=True) for out in (whole, part))
    variance = whole.square().sum((0, 2, 3))
    common = (whole * part).sum((0, 2, 3)).square() / part.square().sum((0, 2, 3)).clamp(min=1e-12)
    return (common.sum() / variance.sum()).item()


def _choices(model: nn.Module, pixels: Tensor, seeds: list[int]) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    yield 'magnitude', 0, strongest_masks(model)
    yield 'activations', 0, most_varied_masks(model, pixels)
    for seed in seeds:
        yield 'random', seed, random_masks(sparse_layers(model), seed)
    yield 'plain', 0, plain_masks(sparse_layers(model))


def keep(rows: list[dict[str, Any]], path: Path) -> None:
    """Replace what was kept."""
    write_rows(path, rows)


def choice_table(path: Path) -> str:
    """What was kept, as Markdown; empty where there is nothing."""
    rows = read_rows(path)
    if not rows:
        return ''
    factors = sorted({row['factor'] for row in rows})
    lines = []
    for choice, label in LABELS.items():
        cells = [[r['explained'] for r in rows if (r['choice'], r['factor']) == (choice, f)] for f in factors]
        lines.append([label, *(_mean(values) for values in cells)])
    header = ['kept inputs of each group', *(f'factor {factor}' for factor in factors)]
    return "Share of the outputs' variance explained before training, mean over layers:\n\n" + markdown(header, lines)


def _mean(values: list[float]) -> str:
    spread = f' ± {stdev(values):.3f} ({len(values)})' if len(values) > 1 else ''
    return f'{fmean(values):.3f}{spread}' if values else ''

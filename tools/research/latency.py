"""Latency of finished runs' networks as they are exported, all in the same interleaved rounds."""

from collections.abc import Sequence
from typing import Any, Optional

from torch import nn

from cnv2_plugin.benchmark import benchmark, random_finished
from cnv2_plugin.benchmark.forms import training
from cnv2_plugin.deploy.timing import Progress
from cnv2_plugin.kernels import available

from .data import SIZE
from .measurement import keep, kept
from .networks import NETWORKS
from .runs import NetworkRun, Place, decoded_masks, finished
from .train import set_masks, sparse_layers

INPUT_SIZE = (1, SIZE, SIZE)
RUNTIME = 'onnxruntime'
STANDARD, NATIVE = 'lowered', 'native'


def measure(
    runs: Sequence[NetworkRun], seed: int, place: Place, rounds: int = 200, progress: Optional[Progress] = None
) -> None:
    """Export the networks of finished runs, time them, and write the figures beside the results.

    Networks of this package are exported in standard operators and, where the kernels are built, with native ones; what
    has unfinished layers (never pruned) and networks of timm in one form. Latency depends on the masks, which the
    results hold, and on no other weight.

    Args:
        runs: those without results are left out.
        seed: whose masks.
        place: of the results.
        rounds: interleaved calls of each network with one image and one thread.
        progress: called with a short text now and then.

    Raises:
        ValueError: no run has results.
    """
    ours, others = {}, {}
    for run in runs:
        figures = finished(run, seed, place)
        if figures is None:
            continue
        model = rebuilt(run, figures)
        if run.recipe.masks == 'none' and sparse_layers(model):
            others[run.name] = training(model, INPUT_SIZE, RUNTIME)
        elif hasattr(model, 'sparse_layers'):
            ours[run.name] = model
        else:
            others[run.name] = model
    if not ours and not others:
        raise ValueError(f'no run of seed {seed} is finished in {place.results}; train them first.')
    forms = (STANDARD, NATIVE) if available() else (STANDARD,)
    measured = benchmark(ours, forms, (RUNTIME,), INPUT_SIZE, rounds=rounds, progress=progress, peers=others)
    networks: dict[str, dict[str, float]] = {}
    for one in measured:
        form = NATIVE if one.form == NATIVE else 'standard'
        networks.setdefault(one.model, {})[form] = round(one.timing.min, 4)
    keep(place, 'latency', rounds, networks)


def measured(place: Place) -> dict[str, dict[str, float]]:
    """Least milliseconds by run and form (``'standard'``, ``'native'``); empty where nothing was measured."""
    return kept(place, 'latency')


def rebuilt(run: NetworkRun, figures: dict[str, Any]) -> nn.Module:
    """The network of a finished run with its masks, and with random statistics and weights."""
    model = NETWORKS[run.network].build()
    if 'masks' in figures:
        set_masks(sparse_layers(model), decoded_masks(figures['masks']))
    return model.eval() if run.recipe.masks == 'none' else random_finished(model)

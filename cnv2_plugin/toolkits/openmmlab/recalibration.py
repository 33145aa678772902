"""Batch-norm statistics measured anew inside mmengine's runners, on batches that training does not miss."""

from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import all_reduce_params, get_rank, is_distributed
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset

from ...sparsify import recalibrate_norms
from .runner_models import plain_model


def recalibrate_runner(runner: Runner, num_batches: int, done: int) -> int:
    """Measure the running statistics of a runner's model anew, see :func:`cnv2_plugin.sparsify.recalibrate_norms`.

    The batches are made by the training pipeline from images that a generator of its own draws, so that neither the
    sampler nor the random state of training moves; they depend on the runner's seed and on ``done`` alone. Each process
    of distributed training takes other images, and the statistics are averaged over all.

    Args:
        runner: in training, of a model that computes its losses by ``forward(mode='loss')``.
        num_batches: batches of each process.
        done: iterations done.

    Returns:
        Number of normalisations that were measured.
    """
    model, wrapper = plain_model(runner), runner.optim_wrapper
    loader = _other_batches(runner.train_dataloader, num_batches, (runner.seed or 0) + done)

    def forward(data: Any) -> None:
        with nullcontext() if hasattr(wrapper, 'optim_wrappers') else wrapper.optim_context(model):
            model._run_forward(model.data_preprocessor(data, True), mode='loss')

    count = recalibrate_norms(model, loader, forward=forward)
    if is_distributed():
        norms = (m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats)
        all_reduce_params([b for norm in norms for b in (norm.running_mean, norm.running_var)], op='mean')
    return count


def check_recalibration(runner: Runner, num_batches: int) -> None:
    """Raise at the start where statistics could not be measured later.

    Raises:
        ValueError: if the model is not one of mmengine, or its training images cannot be counted.
    """
    if not isinstance(plain_model(runner), BaseModel):
        raise ValueError(
            f'{type(plain_model(runner)).__name__} is no mmengine BaseModel, so recalibrate={num_batches} cannot send '
            f'batches through it; use recalibrate=0.'
        )
    if not hasattr(runner.train_dataloader.dataset, '__len__'):
        raise ValueError(
            f'{type(runner.train_dataloader.dataset).__name__} has no length, so recalibrate={num_batches} cannot draw '
            f'images from it; use recalibrate=0.'
        )


def _other_batches(loader: DataLoader, num_batches: int, seed: int) -> DataLoader:
    """A loader of some images of the training set, drawn at random, in batches of the same size."""
    batch_size = loader.batch_size or loader.batch_sampler.batch_size
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loader.dataset), generator=generator)
    first = get_rank() * num_batches * batch_size
    places = torch.arange(first, first + num_batches * batch_size) % len(order)
    return DataLoader(
        Subset(loader.dataset, order[places].tolist()), batch_size, num_workers=loader.num_workers,
        collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn, generator=generator,
    )  # fmt: skip

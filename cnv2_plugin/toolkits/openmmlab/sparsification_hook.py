"""Staged sparsification, and packing after the last stage, inside mmengine's training loops."""

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Optional

import torch
from mmengine.dist import all_gather_object, all_reduce_params, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset

from ...layers import GroupSparseConv2d
from ...sparsify import (
    AttachedSparsifier,
    SparsificationSchedule,
    StagedSparsifier,
    masked_optimizer_state,
    masked_state_dict,
    pack_model,
    recalibrate_norms,
)
from ...sparsify.find_models import refuse_sharded
from ...sparsify.sparsifier import check_earlier
from .runner_config import average_anew, ema_models, plain_model


@HOOKS.register_module()
class StagedSparsificationHook(Hook):
    """Prunes the model's learned group convolutions and reactivations stage by stage while it trains.

    A thin caller of :class:`~cnv2_plugin.sparsify.AttachedSparsifier`. Progress is that of the whole run, ``iterations
    done / iterations of the run``, whatever the loop (by epoch or by iteration) and the gradient accumulation. Masks
    are part of the checkpoints; on resume the stages due so far are replayed. Layers that are already finished
    (fine-tuning from pruned weights) stay as they are. The copies of EMA hooks get the masks too.

    The group lasso is one more entry ``loss_group_lasso`` in the model's dict of losses, so that mixed precision,
    gradient accumulation and clipping treat it as any other loss.

    Scalars ``sparsification/kept_fraction`` (share of the prunable weights that is left), ``sparsification/stage`` and,
    with group lasso, ``sparsification/group_lasso`` go to the visualizer.

    Args:
        sparse_fraction: share of the run in which the stages happen.
        group_lasso: weight of the group lasso (CondenseNet: 1e-5 on ImageNet; CondenseNetV2: none).
        log_interval: iterations between two records of the scalars; each stage is recorded besides.
        start: share of the run before the first stages.
        recalibrate: training batches on which batch normalisation is measured anew after each stage, see
            :func:`~cnv2_plugin.sparsify.recalibrate_norms`; 0 measures nothing. Training itself goes on as without;
            what changes is a validation soon after a stage.
        **earlier: as of :class:`~cnv2_plugin.sparsify.StagedSparsifier`.

    Raises:
        ValueError: if an argument is out of range; at the start of training also if the model has no sparse layer, or
            the optimiser steps in the pruning part are fewer than the stages.
        RuntimeError: if the parameters are sharded, or ranks disagree on the masks.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        sparse_fraction: float = 0.5,
        group_lasso: float = 0.0,
        log_interval: int = 50,
        start: float = 0.0,
        recalibrate: int = 0,
        **earlier: str,
    ) -> None:
        check_earlier(**earlier)
        self.schedule = SparsificationSchedule(sparse_fraction, start)
        if recalibrate < 0:
            raise ValueError(f'recalibrate is {recalibrate}; it takes a number of training batches, or 0.')
        if group_lasso < 0:
            raise ValueError(f'group_lasso is {group_lasso}; it takes a weight of at least 0.')
        if log_interval < 1:
            raise ValueError(f'log_interval is {log_interval}; it takes a number of iterations of at least 1.')
        self.group_lasso = group_lasso
        self.log_interval = log_interval
        self.recalibrate = recalibrate
        self.sparsifier: Optional[StagedSparsifier] = None
        self._lasso: Optional[Tensor] = None

    def first_stage(self, model: nn.Module) -> float:
        """Return the progress of the run at which the first stage of a model's layers is due; 1 where it has none."""
        factors = [m.factor for m in model.modules() if isinstance(m, GroupSparseConv2d) and m.factor > 1]
        return self.schedule.due(1, max(factors)) if factors else 1.0

    def before_train(self, runner: Runner) -> None:
        """Check the model, and replay what a resumed run has behind it."""
        refuse_sharded(runner.model)
        if self.recalibrate:
            _check_recalibration(runner, self.recalibrate)
        model = plain_model(runner)
        steps = -(-runner.max_iters // getattr(runner.optim_wrapper, '_accumulative_counts', 1))
        share, start = self.schedule.sparse_fraction, self.schedule.start
        self.sparsifier = StagedSparsifier(model, steps, share, self.group_lasso, start=start)
        self._driver = AttachedSparsifier(self.sparsifier, ema=ema_models(runner))
        self._driver.set_progress(runner.iter / runner.max_iters)
        self._masks_changed(runner, runner.iter)
        self._lasso_hook = None
        if self.group_lasso and not self.sparsifier.finished:
            self._lasso_hook = model.register_forward_hook(self._add_lasso, with_kwargs=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Do the stages that are due after this iteration."""
        if self._lasso_hook and self._lasso is None:
            raise RuntimeError(
                f'{type(plain_model(runner)).__name__} trains without returning a dict of losses from '
                f"forward(mode='loss'), so group_lasso={self.group_lasso} cannot enter its loss; use group_lasso=0."
            )
        done = runner.iter + 1
        changed = self._driver.set_progress(done / runner.max_iters)
        if changed:
            self._masks_changed(runner, done)
            if self.recalibrate:
                _recalibrate(runner, self.recalibrate, done)
        if changed or done % self.log_interval == 0:
            self._record(runner, done)
        self._lasso = None

    def after_train(self, runner: Runner) -> None:
        """Leave the model without our hook."""
        if self._lasso_hook:
            self._lasso_hook.remove()

    def _masks_changed(self, runner: Runner, done: int) -> None:
        layers = self.sparsifier.layers.values()
        check_masks_agree(layers)
        kept, stage = self.sparsifier.sparsity()['total'], self.sparsifier.stage
        self._scalars = dict(kept_fraction=kept, stage=stage)
        runner.logger.info(
            f'Sparsification after {done} of {runner.max_iters} iterations: stage {stage} of '
            f'{max(layer.num_stages for layer in layers)}, {kept:.1%} of the prunable weights kept.'
        )

    def _record(self, runner: Runner, step: int) -> None:
        scalars = dict(self._scalars)
        if self.group_lasso:
            scalars['group_lasso'] = 0.0 if self._lasso is None else self._lasso.item()
        runner.visualizer.add_scalars({f'sparsification/{k}': v for k, v in scalars.items()}, step=step)

    def _add_lasso(self, module: nn.Module, args, kwargs, losses):
        if kwargs.get('mode') != 'loss' or not isinstance(losses, dict) or not torch.is_grad_enabled():
            return None
        lasso = self.sparsifier.regularization()
        self._lasso = lasso.detach()
        return {**losses, 'loss_group_lasso': lasso}


def check_masks_agree(layers: Iterable[GroupSparseConv2d]) -> None:
    """Raise, on every rank, when ranks have different masks; say which ranks differ from rank 0."""
    digest = hashlib.sha256()
    for layer in layers:
        if not layer.deploy:
            digest.update(layer.mask.cpu().numpy().tobytes())
    digests = all_gather_object(digest.hexdigest())
    different = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if different:
        raise RuntimeError(
            f'The masks of ranks {", ".join(map(str, different))} differ from those of rank 0, so their weights have '
            f'diverged; start all ranks from the same weights and let DDP average the gradients of all parameters.'
        )


def _recalibrate(runner: Runner, num_batches: int, done: int) -> None:
    """Measure running statistics anew, on batches of the training set that training does not miss.

    The images are drawn by a generator of its own, so that neither the sampler nor the random state of training moves;
    they depend on the runner's seed and on ``done`` alone. Each process of distributed training takes other images, and
    the statistics are averaged over all.
    """
    model, wrapper = plain_model(runner), runner.optim_wrapper
    loader = _other_batches(runner.train_dataloader, num_batches, (runner.seed or 0) + done)

    def forward(data: Any) -> None:
        with nullcontext() if hasattr(wrapper, 'optim_wrappers') else wrapper.optim_context(model):
            model._run_forward(model.data_preprocessor(data, True), mode='loss')

    recalibrate_norms(model, loader, forward=forward)
    if is_distributed():
        norms = (m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats)
        all_reduce_params([b for norm in norms for b in (norm.running_mean, norm.running_var)], op='mean')


def _check_recalibration(runner: Runner, num_batches: int) -> None:
    """Raise at the start where statistics could not be measured later."""
    model, data = plain_model(runner), runner.train_dataloader.dataset
    fault = '' if hasattr(data, '__len__') else f'{type(data).__name__}, the training set, has no length'
    fault = fault if isinstance(model, BaseModel) else f'{type(model).__name__} is no mmengine BaseModel'
    if fault:
        raise ValueError(f'{fault}, so recalibrate={num_batches} cannot measure anything; use recalibrate=0.')


def _other_batches(loader: DataLoader, num_batches: int, seed: int) -> DataLoader:
    """A loader of some images of the training set, drawn at random, in batches of the same size."""
    batch_size = loader.batch_size or loader.batch_sampler.batch_size
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loader.dataset), generator=generator)
    places = (torch.arange(num_batches * batch_size) + get_rank() * num_batches * batch_size) % len(order)
    return DataLoader(
        Subset(loader.dataset, order[places].tolist()), batch_size, num_workers=loader.num_workers,
        collate_fn=loader.collate_fn, worker_init_fn=loader.worker_init_fn, generator=generator,
    )  # fmt: skip


@HOOKS.register_module(name=['PackedTrainingHook', 'CondensedTrainingHook'])
class PackedTrainingHook(Hook):
    """Goes on training with the surviving weights only; see :func:`cnv2_plugin.sparsify.pack_model`.

    Put it beside ``StagedSparsificationHook``. The optimiser's state and the averaged models of EMA hooks are carried
    over, a model of distributed training is wrapped anew. Checkpoints hold the masked form whatever the model is in, so
    that they resume, test and deploy as without this hook.
    """

    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Pack at once where a resumed or fine-tuned model is finished."""
        self.packed = False
        self._pack_when_finished(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Pack after the iteration that did the last stage."""
        self._pack_when_finished(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the masked form."""
        model = plain_model(runner)
        for key in ('state_dict', 'ema_state_dict'):
            if key in checkpoint:
                checkpoint[key] = type(checkpoint[key])(masked_state_dict(checkpoint[key], model))
        state, wrapper = checkpoint.get('optimizer'), runner.optim_wrapper
        if state is not None and hasattr(wrapper, 'optim_wrappers'):
            for name, single in wrapper.optim_wrappers.items():
                state[name] = masked_optimizer_state(state[name], single.optimizer, model)
        elif state is not None:
            checkpoint['optimizer'] = masked_optimizer_state(state, wrapper.optimizer, model)

    def _pack_when_finished(self, runner: Runner) -> None:
        model = plain_model(runner)
        if self.packed or not all(m.is_finished() for m in model.modules() if isinstance(m, GroupSparseConv2d)):
            return
        averages = ema_models(runner)
        optimizers = getattr(runner.optim_wrapper, 'optim_wrappers', {'': runner.optim_wrapper}).values()
        report = pack_model(model, optimizers, averages)
        for average in averages:
            average_anew(average)
        if is_model_wrapper(runner.model):
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        self.packed = True
        runner.logger.info(
            f'{len(report.layers)} layers train on their surviving weights from here on: '
            f'{report.weights_after / 1e6:.2f} M of {report.weights_before / 1e6:.2f} M.'
        )


CondensedTrainingHook = PackedTrainingHook
"""The name of the hook in earlier versions."""

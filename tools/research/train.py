"""Trains a network in plain PyTorch, in the form that is fastest on a CPU, and goes on where it stopped."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from cnv2_plugin.checkpoints import atomic_path, load_checkpoint
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.sparsify import (
    StagedSparsifier,
    distillation_loss,
    pack_model,
    recalibrate_norms,
    restore_masked,
)

from .captured import CapturedStep
from .data import Data, Images, batches
from .recipe import Recipe


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int,
    checkpoint: Optional[Path] = None,
    masks: Optional[Mapping[str, Tensor]] = None,
    title: str = 'training',
    teacher: Optional[nn.Module] = None,
    device: str = 'cpu',
) -> list[dict[str, float]]:
    """Train in place; the model ends in evaluation mode on the CPU, masked where it is sparse.

    Order and augmentation of the images depend on the seed and the epoch alone, so that a run which is stopped and goes
    on from its checkpoint ends as one that was not.

    Args:
        model: before training.
        data: what it is trained and tested on.
        recipe: how.
        seed: of batches and augmentation.
        checkpoint: written after every epoch and read where it is there.
        masks: final masks by layer, for ``recipe.masks='given'``.
        title: of the progress bar.
        teacher: what is learnt from, for ``recipe.distill`` above 0.
        device: that trains. Images are chosen and augmented on the CPU, so that they are the same on every device.

    Returns:
        One row an epoch: ``loss`` (mean of training), ``accuracy`` (test, percent), ``kept`` (share of prunable
        weights), ``seconds`` (processor time of the training steps), ``on_cpu`` (1 where a CPU trained).

    Raises:
        CheckpointError: the checkpoint is damaged.
        ValueError: it is of another recipe or seed, or masks or a teacher are missing.
    """
    training = Training(model, data, recipe, seed, masks, teacher, device)
    if checkpoint is not None and checkpoint.exists():
        training.load(load_checkpoint(checkpoint), checkpoint)
    remaining = range(len(training.history), recipe.epochs)
    with tqdm(total=recipe.epochs, initial=len(training.history), desc=title, unit='epoch', disable=None) as progress:
        for epoch in remaining:
            training.run_epoch(epoch)
            progress.update()
            if checkpoint is not None:
                with atomic_path(checkpoint) as temporary:
                    torch.save(training.state(), temporary)
    training.finish()
    return training.history


STEPS_BEFORE_CAPTURE = 3


class Training:
    """A model with its optimiser, its sparsifier and what happened so far."""

    def __init__(
        self, model: nn.Module, data: Data, recipe: Recipe, seed: int, masks: Optional[Mapping[str, Tensor]] = None,
        teacher: Optional[nn.Module] = None, device: str = 'cpu',
    ) -> None:  # fmt: skip
        if recipe.distill and teacher is None:
            raise ValueError(f'distill={recipe.distill} takes a trained network to learn from, but there is none.')
        self.target = dict(
            device=device, memory_format=torch.channels_last if device == 'cpu' else torch.contiguous_format
        )
        self.model = model.to(**self.target)
        self.data, self.recipe, self.seed = data, recipe, seed
        self.teacher = None if teacher is None else teacher.eval().to(**self.target)
        self.steps = len(data.train) // recipe.batch_size
        self.history: list[dict[str, float]] = []
        self.optimizer = torch.optim.SGD(
            model.parameters(), recipe.rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )
        self.layers = sparse_layers(model)
        self.packed = False
        self.steps_alike, self.captured = 0, None
        self.sparsifier = None
        if self.layers and recipe.masks == 'random':
            set_masks(self.layers, random_masks(self.layers, seed))
        elif self.layers and recipe.masks == 'given':
            if masks is None:
                raise ValueError("masks='given' takes the masks of another run, but there are none.")
            set_masks(self.layers, masks)
        if self.layers and recipe.masks != 'none':
            self.sparsifier = StagedSparsifier(model, max(self.steps * recipe.epochs, 1), **recipe.sparsifier)
        self._pack_when_finished()

    def run_epoch(self, epoch: int) -> None:
        """Train on every image once, then test."""
        recipe, total = self.recipe, self.steps * self.recipe.epochs
        torch.manual_seed(self.seed * 1000 + epoch)
        generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        self.model.train()
        losses, start = torch.zeros((), dtype=torch.float64, device=self.target['device']), time.process_time()
        for i, (images, labels) in enumerate(self.batches(generator)):
            step = epoch * self.steps + i
            for group in self.optimizer.param_groups:
                group['lr'] = recipe.learning_rate((step + 1) / total)
            losses += self.step(images, labels)
            if self.sparsifier is not None and self.sparsifier.step():
                self._recalibrate(step)
                self._pack_when_finished()
        mean_loss = losses.item() / self.steps
        seconds = time.process_time() - start
        kept = 1.0 if self.sparsifier is None else self.sparsifier.sparsity()['total']
        self.history.append(
            dict(
                loss=mean_loss, accuracy=accuracy(self.model, self.data, self.data.test), kept=kept,
                seconds=seconds, on_cpu=float(self.target['device'] == 'cpu'),
            )
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Everything that a later sitting needs."""
        return dict(
            state_dict=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            sparsifier=None if self.sparsifier is None else self.sparsifier.state_dict(),
            packed=self.packed, history=self.history, settings=self._settings(),
        )  # fmt: skip

    def load(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from a state of :meth:`state`."""
        if state.get('settings') != self._settings():
            raise ValueError(f'{path} was written by another recipe or seed; move it away, or go on with the same.')
        self.model.load_state_dict(state['state_dict'])
        if state['packed'] and not self.packed:
            self._pack()
        self.optimizer.load_state_dict(state['optimizer'])
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(state['sparsifier'])
        self.history = list(state['history'])

    def finish(self) -> None:
        """Leave the model as tests and conversions want it."""
        if self.packed:
            restore_masked(self.model)
        self.model.eval().to(device='cpu', memory_format=torch.contiguous_format)

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The training images in a new order, augmented, where the model is."""
        recipe = self.recipe
        for images, labels in batches(self.data, recipe.batch_size, recipe.shift, recipe.flip, generator):
            yield images.to(**self.target), labels.to(self.target['device'])

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Change the weights once; returns the loss of the batch."""
        loss = self._gradients(images, labels)
        self.optimizer.step()
        return loss

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Leave the gradients of a batch in the parameters; returns its loss."""
        self.steps_alike += 1
        if self.captured is None and images.is_cuda and self.steps_alike > STEPS_BEFORE_CAPTURE:
            self.captured = CapturedStep(self._loss, self.model.parameters(), images, labels)
        if self.captured is not None:
            return self.captured(images, labels)
        self.optimizer.zero_grad()
        loss = self._loss(images, labels)
        loss.backward()
        return loss.detach()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if self.sparsifier is not None and self.sparsifier.group_lasso:
            loss = loss + self.sparsifier.regularization()
        if self.recipe.distill:
            with torch.no_grad():
                taught = self.teacher(images)
            loss = loss + self.recipe.distill * distillation_loss(logits, taught, self.recipe.temperature)
        return loss

    def _recalibrate(self, step: int) -> None:
        recipe = self.recipe
        if recipe.recalibrate:
            generator = torch.Generator().manual_seed(self.seed * 1_000_000 + step)
            recalibrate_norms(self.model, self.batches(generator), recipe.recalibrate)

    def _pack_when_finished(self) -> None:
        wanted = self.recipe.condense and self.sparsifier is not None
        if wanted and not self.packed and self.sparsifier.finished:
            self._pack()

    def _pack(self) -> None:
        pack_model(self.model, self.optimizer)
        self.model.to(**self.target)
        self.packed = True
        self.steps_alike, self.captured = 0, None

    def _settings(self) -> dict[str, Any]:
        return dict(recipe=self.recipe.settings(), seed=self.seed, images=len(self.data.train))


def sparse_layers(model: nn.Module) -> dict[str, GroupSparseConv2d]:
    """The layers that have something to prune, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, GroupSparseConv2d) and m.factor > 1}


def set_masks(layers: Mapping[str, GroupSparseConv2d], masks: Mapping[str, Tensor]) -> None:
    """Give layers their final masks.

    Args:
        layers: by name.
        masks: bool, ``(groups, units)`` by name of the layer.

    Raises:
        ValueError: a layer has none, or one of another shape.
    """
    for name, layer in layers.items():
        kept = masks.get(name)
        if kept is None or kept.shape != (layer.groups, layer.num_units):
            raise ValueError(f'{name} has no mask of its shape; give the masks of a run of the same network.')
        layer.grouping.by_unit(layer.mask).copy_(kept[..., None])
        layer.stage.fill_(layer.num_stages)


def unit_masks(model: nn.Module) -> dict[str, Tensor]:
    """Which units each layer keeps: bool, ``(groups, units)`` by name of the layer."""
    return {name: layer.grouping.by_unit(layer.mask)[..., 0].clone() for name, layer in sparse_layers(model).items()}


def random_masks(layers: Mapping[str, GroupSparseConv2d], seed: int) -> dict[str, Tensor]:
    """As many units as pruning would leave, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, layer in layers.items():
        order = torch.rand(layer.groups, layer.num_units, generator=generator).argsort(1)
        masks[name] = order < layer.kept_per_group()
    return masks


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, images: Images) -> float:
    """Share of images that are classified rightly, in percent; the mode of the model stays."""
    mode = model.training
    model.eval()
    right, device = 0, next(model.parameters()).device
    for pixels, labels in zip(images.pixels.split(500), images.labels.split(500)):
        right += (model(data.normalised(pixels).to(device)).argmax(1).cpu() == labels).sum().item()
    model.train(mode)
    return round(100 * right / len(images), 4)

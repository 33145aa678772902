"""Drives every group-sparse layer of a model through its pruning stages."""

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..layers import GroupSparseConv2d
from .find_models import likeness, plain_name, refuse_sharded
from .schedule import SparsificationSchedule

PAPERS = dict(start=0.0, spacing='even', importance='l1')
"""Settings of the papers: those of states that do not name them. Earlier versions knew other values of the last two."""


def check_earlier(**options: str) -> None:
    """Raise unless options of earlier versions have the values that are the only ones today."""
    for name, value in options.items():
        if name not in ('spacing', 'importance'):
            raise TypeError(f'there is no option {name}; see the arguments of StagedSparsifier.')
        if value != PAPERS[name]:
            raise ValueError(f'{name}={value!r} is gone, as it gained nothing; leave {name} out for {PAPERS[name]!r}.')


class StagedSparsifier:
    """Prunes the group-sparse layers of a model as training goes on.

    Masks and stages live in the model's own state dict, so a model restored from a checkpoint has them; this object
    adds the number of steps done. Layers that are ahead of the schedule (fine-tuning from pruned weights) stay as they
    are. A copy of the network inside the model that no gradient reaches, such as a momentum teacher, gets the masks of
    the layers that train.

    Args:
        model: plain, compiled, or wrapped by DDP; its layers are changed in place.
        total_steps: optimiser steps of the whole training.
        sparse_fraction: share of training in which the stages happen.
        group_lasso: weight of the group lasso in :meth:`regularization`.
        start: share of training before the first stages, see :class:`.schedule.SparsificationSchedule`.
        steps_per_epoch: where it is known, a resumed training tells more epochs from another batch size.
        **earlier: ``spacing`` and ``importance`` of earlier versions, if they are the papers' ``'even'`` and ``'l1'``.

    Raises:
        ValueError: if the model has no group-sparse layer, the pruning part has fewer steps than stages, or an option
            is out of range.
        RuntimeError: if the weights are sharded over processes.

    Example:
        >>> sparsifier = StagedSparsifier(model, total_steps=len(loader) * epochs)
        >>> for images, targets in loader:
        ...     loss = criterion(model(images), targets) + sparsifier.regularization()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     sparsifier.step()
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        sparse_fraction: float = 0.5,
        group_lasso: float = 0.0,
        start: float = 0.0,
        steps_per_epoch: Optional[int] = None,
        **earlier: str,
    ) -> None:
        check_earlier(**earlier)
        refuse_sharded(model)
        if not isinstance(total_steps, int) or total_steps < 1:
            raise ValueError(
                f'total_steps is {total_steps!r}; it takes the number of optimiser steps of the whole training.'
            )
        if group_lasso < 0:
            raise ValueError(f'group_lasso is {group_lasso}; it takes a weight of at least 0.')
        self.model = model
        self.layers = {
            plain_name(name): layer for name, layer in model.named_modules() if isinstance(layer, GroupSparseConv2d)
        }
        if not self.layers:
            raise ValueError(f'{type(model).__name__} has no group-sparse layer, so there is nothing to sparsify.')
        self._read: dict[str, tuple[Tensor, int, int]] = {}
        self.schedule = SparsificationSchedule(sparse_fraction, start)
        self.total_steps = total_steps
        self.group_lasso = group_lasso
        self.steps_done = 0
        self.steps_per_epoch = steps_per_epoch
        self.driver: Any = None
        self._trained: set[str] = set()
        self._watched: dict[str, Tensor] = {}
        self._check_enough_steps()
        self._watch()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_watched': {}}  # copies of weights have no hooks

    def step(self) -> bool:
        """Count one optimiser step and do the stages that are due.

        Call it after steps that were taken only: one that ``GradScaler`` skips is no progress.

        Returns:
            Whether any mask changed.

        Raises:
            ValueError: as for :meth:`set_progress`.
            RuntimeError: if the sparsifier is attached to an optimiser, which counts by itself.
        """
        if self.driver is not None:
            raise RuntimeError(
                f'the sparsifier is attached to {type(self.driver.optimizer).__name__}, whose steps it counts by '
                f'itself; remove the call of step(), or call driver.detach() first.'
            )
        return self.count_step()

    def count_step(self) -> bool:
        """Do :meth:`step` for the driver of an attached sparsifier."""
        self._watch()
        self.steps_done += 1
        return self.set_progress(min(self.steps_done / self.total_steps, 1.0))

    def set_progress(self, progress: float) -> bool:
        """Do the stages that are due at a progress between 0 and 1; going back changes nothing.

        Returns:
            Whether any mask changed.

        Raises:
            ValueError: if a layer that is to be pruned has NaN or infinite weights, or ``progress`` is out of range; no
                mask of any layer is changed then.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f'progress is {progress}; it takes the share of training done, between 0 and 1.')
        due = {name: self.schedule.stage(progress, layer.factor) for name, layer in self._unfinished().items()}
        due = {name: stage for name, stage in due.items() if stage > self._stage(name)}
        for name in due:
            self.layers[name].check_finite(name)
        leaders = {name: leader for name in due if (leader := self._leader(self.layers[name], name)) is not None}
        for name, stage in due.items():
            if name not in leaders:
                self.layers[name].prune_to(stage)
        for name, leader in leaders.items():
            self.layers[name].take_pruning(leader)
        return bool(due)

    def regularization(self) -> Tensor:
        """Return the group lasso of the unfinished layers times its weight: a scalar to add to the loss."""
        layers = [*self._unfinished().values()] if self.group_lasso else []
        if not layers:
            return next(iter(self.layers.values())).conv.weight.new_zeros(())
        return self.group_lasso * torch.stack([layer.group_lasso() for layer in layers]).sum()

    @property
    def finished(self) -> bool:
        """Whether every layer is done with its last stage."""
        return not self._unfinished()

    @property
    def stage(self) -> int:
        """Stages done by the layer that is furthest behind, among the layers with the most stages."""
        longest = max(layer.num_stages for layer in self.layers.values())
        return min(self._stage(name) for name, layer in self.layers.items() if layer.num_stages == longest)

    def sparsity(self) -> dict[str, float]:
        """Return the kept fraction of the weights of each layer by name, and of all under ``'total'``."""
        kept = {name: layer.kept_fraction() for name, layer in self.layers.items()}
        size = {name: layer.in_channels * layer.out_channels for name, layer in self.layers.items()}
        total = sum(kept[name] * size[name] for name in kept) / sum(size.values())
        return {**kept, 'total': total}

    def state_dict(self) -> dict[str, Any]:
        """Return steps done and settings; masks and stages are in the model's state dict."""
        state: dict[str, Any] = dict(
            steps_done=self.steps_done, total_steps=self.total_steps, sparse_fraction=self.schedule.sparse_fraction
        )
        for name, value in (('start', self.schedule.start), ('steps_per_epoch', self.steps_per_epoch)):
            if value:
                state[name] = value
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; load the model's state dict too, it holds the masks.

        A training that was cut short keeps its progress where ``total_steps`` is another, as with a changed batch size,
        or its steps where ``steps_per_epoch`` is the same. One that was done goes on with its final masks where
        ``total_steps`` is larger.

        Raises:
            ValueError: if the state is of a training with another pruning part, of one that was done after more steps
                than this one has, or of something else.
        """
        missing = [name for name in ('steps_done', 'total_steps', 'sparse_fraction') if name not in state]
        if missing:
            raise ValueError(
                f'the saved state lacks {", ".join(missing)}; give what StagedSparsifier.state_dict() returned.'
            )
        for name, own in {**PAPERS, **self.state_dict()}.items():
            saved = state.get(name, PAPERS.get(name))
            if saved != own and name not in ('steps_done', 'total_steps', 'steps_per_epoch'):
                raise ValueError(
                    f'the saved sparsifier has {name}={saved} but this one {own}; resume with the same value.'
                )
        done, length = state['steps_done'], state['total_steps']
        epochs_differ = self.steps_per_epoch is not None and state.get('steps_per_epoch') == self.steps_per_epoch
        if done >= length or epochs_differ:
            if length > self.total_steps and done >= self.total_steps:
                raise ValueError(
                    f'the saved training took {done} of total_steps={length}, and this one has {self.total_steps}; '
                    f'give more steps to go on with its masks.'
                )
            self.steps_done = done
        else:
            self.steps_done = round(done * self.total_steps / length)

    def _watch(self) -> None:
        """Notice the first gradient of each weight, to know which layers train."""
        for name, layer in self.layers.items():
            weight = layer.conv.weight
            if name not in self._trained and weight.requires_grad and self._watched.get(name) is not weight:
                self._watched[name] = weight
                weight.register_hook(lambda _, name=name: self._trained.add(name))

    def _leader(self, layer: GroupSparseConv2d, name: str) -> Optional[GroupSparseConv2d]:
        """The layer that trains of which one without gradients is a copy, or an average."""
        trained = [] if name in self._trained else [self.layers[other] for other in self._trained]
        alike = [other for other in trained if other.grouping == layer.grouping and other.state == 'masked']
        best = max(alike, key=lambda other: likeness(layer, other), default=None)
        return best if best is not None and likeness(layer, best) > 0.5 else None

    def _unfinished(self) -> dict[str, GroupSparseConv2d]:
        return {name: layer for name, layer in self.layers.items() if self._stage(name) < layer.num_stages}

    def _stage(self, name: str) -> int:
        """Stages that a layer has done, read from its device only where the buffers have changed since."""
        layer = self.layers[name]
        if layer.deploy:
            return layer.num_stages
        stage, version, done = self._read.get(name, (None, 0, 0))
        now = layer.stage._version + layer.mask._version
        if stage is not layer.stage or version != now:
            done = layer.stages_done()
            self._read[name] = (layer.stage, now, done)
        return done

    def _check_enough_steps(self) -> None:
        stages = max((layer.num_stages - layer.stages_done() for layer in self._unfinished().values()), default=0)
        part = self.schedule.sparse_fraction - self.schedule.start
        steps = int(self.total_steps * part)
        if steps < stages:
            needed = -int(-stages // part)
            spread = f'start={self.schedule.start} and ' if self.schedule.start else ''
            raise ValueError(
                f'total_steps={self.total_steps} with {spread}sparse_fraction={self.schedule.sparse_fraction} leaves '
                f'{steps} steps for {stages} pruning stages; train for at least {needed} steps.'
            )

"""Learning from an unpruned network inside mmengine's training loops."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...checkpoints import atomic_path, find_state_dict, load_checkpoint
from ...sparsify import distillation_loss
from .runner_config import plain_model

COPIES = ('start', 'first_stage')
"""Moments at which the network itself is copied as its teacher."""


@HOOKS.register_module()
class DistillationHook(Hook):
    """Adds the divergence from a teacher's predictions to the losses of a classifier.

    One more entry ``loss_distillation`` in the model's dict of losses (see
    :func:`cnv2_plugin.sparsify.distillation_loss`, arXiv 1503.02531), so that mixed precision, gradient accumulation
    and clipping treat it as any other loss. The student's logits are those that its ``head`` has just computed; the
    teacher sees the same images, as the student's data preprocessor leaves them, in evaluation mode and without
    gradients.

    The teacher is no part of the model, of the optimiser or of the checkpoints. A copy of the network is written to
    ``teacher.pth`` in the work folder when it is made, and a resumed run reads it there.

    Args:
        teacher: config of a classifier, as a path or as the model's dict; or a copy of the network that is trained:
            ``'start'`` takes it before the first iteration (fine-tuning: what ``load_from`` loaded), ``'first_stage'``
            before the first stage of ``StagedSparsificationHook``; until then nothing is distilled.
        checkpoint: weights of a teacher by config.
        weight: of the loss.
        temperature: softens the predictions.

    Raises:
        ValueError: if an argument is out of range, or the model has no head whose logits could be taken.
        FileNotFoundError: if a resumed run has lost its ``teacher.pth``.

    Example:
        >>> custom_hooks = [*_base_.get('custom_hooks', []), dict(type='StagedSparsificationHook', start=0.1),
        ...                 dict(type='DistillationHook', teacher='first_stage')]
    """

    priority = 'HIGH'  # before StagedSparsificationHook prunes

    def __init__(
        self,
        teacher: Union[str, Mapping[str, Any]] = 'start',
        checkpoint: Optional[str] = None,
        weight: float = 1.0,
        temperature: float = 4.0,
    ) -> None:
        if isinstance(teacher, str) and teacher not in COPIES and not teacher.endswith('.py'):
            raise ValueError(
                f"teacher is {teacher!r}; it takes 'start', 'first_stage', the path of a config (.py), or the config "
                f'of a model.'
            )
        if (teacher in COPIES) != (checkpoint is None):
            raise ValueError(
                f'checkpoint is {checkpoint!r}; a teacher by config takes the file of its weights, a copy takes none.'
            )
        if weight < 0 or temperature <= 0:
            raise ValueError(
                f'weight is {weight} and temperature {temperature}; they take a number of at least 0 and one above 0.'
            )
        self.source, self.checkpoint = teacher, checkpoint
        self.weight, self.temperature = weight, temperature
        self.teacher: Optional[nn.Module] = None
        self._logits: Optional[Tensor] = None
        self._handles: list = []

    def before_train(self, runner: Runner) -> None:
        """Get the teacher, unless it is a copy of a moment that is still to come."""
        model, path = plain_model(runner), _teacher_path(runner)
        if getattr(model, 'head', None) is None:
            raise ValueError(f'{type(model).__name__} has no head whose logits could be taken; distil a classifier.')
        self.teacher = None
        if self.source not in COPIES:
            config = Config.fromfile(self.source).model if isinstance(self.source, str) else self.source
            self._teach(model, MODELS.build(deepcopy(config)), find_state_dict(load_checkpoint(self.checkpoint)))
        elif runner.iter and self._copied_by(runner, runner.iter):
            if not path.exists():
                raise FileNotFoundError(
                    f'{path} is missing, the copy that this run learns from; put it back, or give the teacher by '
                    f'config and checkpoint.'
                )
            self._teach(model, deepcopy(model), load_checkpoint(path)['state_dict'])
        elif self.source == 'start':
            self._copy(runner)
        self._attach(model)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Copy the network before the first stage."""
        if self.teacher is None and self._copied_by(runner, runner.iter + 1):
            self._detach()
            self._copy(runner)
            self._attach(plain_model(runner))

    def after_train(self, runner: Runner) -> None:
        """Leave the model without our forward hooks."""
        self._detach()

    def _attach(self, model: nn.Module) -> None:
        self._handles = [
            model.head.register_forward_hook(self._keep_logits),
            model.register_forward_hook(self._add_loss, with_kwargs=True),
        ]

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _copied_by(self, runner: Runner, done: int) -> bool:
        """Whether the copy is made once so many iterations are done."""
        if self.source == 'start':
            return True
        hook = next((h for h in runner.hooks if type(h).__name__ == 'StagedSparsificationHook'), None)
        if hook is None:
            raise ValueError("teacher='first_stage' needs StagedSparsificationHook beside it; add it to custom_hooks.")
        return hook.first_stage(plain_model(runner)) <= done / runner.max_iters

    def _copy(self, runner: Runner) -> None:
        model, path = plain_model(runner), _teacher_path(runner)
        self._teach(model, deepcopy(model), model.state_dict())
        if runner.rank == 0:
            with atomic_path(path) as temporary:
                torch.save(dict(state_dict=self.teacher.state_dict()), temporary)
        runner.logger.info(f'A copy of the network teaches from here on; it is kept in {path}.')

    def _teach(self, student: nn.Module, teacher: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
        teacher.load_state_dict(state_dict)
        teacher.to(next(student.parameters()).device)
        teacher.eval()
        self.teacher = teacher.requires_grad_(False)

    def _keep_logits(self, head: nn.Module, args, logits) -> None:
        self._logits = logits

    def _add_loss(self, model: nn.Module, args, kwargs, losses):
        logits, self._logits = self._logits, None
        if self.teacher is None or kwargs.get('mode') != 'loss' or not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            taught = self.teacher(kwargs['inputs'] if 'inputs' in kwargs else args[0], mode='tensor')
        loss = self.weight * distillation_loss(logits, taught, self.temperature)
        return {**losses, 'loss_distillation': loss}


def _teacher_path(runner: Runner) -> Path:
    return Path(runner.work_dir) / 'teacher.pth'

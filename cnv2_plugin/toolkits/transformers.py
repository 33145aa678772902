"""Staged sparsification as a callback of Hugging Face's ``Trainer``.

Needs ``pip install "cnv2_plugin[transformers]"``.
"""

from typing import Any, Optional

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..sparsify import AttachedSparsifier, StagedSparsifier


class StagedSparsificationCallback(TrainerCallback):
    """Prunes the group-sparse layers of a model stage by stage while ``Trainer.train`` trains it.

    The model may be any module that ``Trainer`` takes, such as ``TimmWrapperForImageClassification`` of one of our
    names. The length of the training is the trainer's own (``max_steps``). Masks and stages are in the model's
    checkpoints and the count of steps in the optimiser's, so ``train(resume_from_checkpoint=True)`` goes on where it
    was. The kept fraction and the stage are in the trainer's logs.

    Args:
        **options: of :class:`~cnv2_plugin.sparsify.StagedSparsifier`: ``sparse_fraction``, ``start``, ``group_lasso``
            (its gradient is added before each step; keep it out of the loss).

    Raises:
        ValueError: at the start of training, if there is no sparse layer, or an option is out of range.

    Example:
        >>> Trainer(model, arguments, train_dataset=data, callbacks=[StagedSparsificationCallback()]).train()
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.sparsifier: Optional[StagedSparsifier] = None
        self._attached: Optional[AttachedSparsifier] = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Attach a sparsifier to the optimiser."""
        self.on_train_end(args, state, control)
        self.sparsifier = StagedSparsifier(model, state.max_steps, **self.options)
        self._attached = AttachedSparsifier(self.sparsifier, optimizer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Optional[dict[str, float]] = None,
        **kwargs: Any,
    ) -> None:
        """Add the kept fraction and the stage to what is logged."""
        if self.sparsifier and logs is not None:
            found = dict(kept_fraction=self.sparsifier.sparsity()['total'], sparsification_stage=self.sparsifier.stage)
            logs.update(found)
            if state.log_history:
                state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimiser without our hooks."""
        if self._attached:
            self._attached.detach()

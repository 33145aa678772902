"""Staged sparsification as a callback of Lightning's ``Trainer``; needs ``pip install "cnv2_plugin[lightning]"``."""

from typing import Any, Optional

from lightning.pytorch import Callback, LightningModule, Trainer

from ..sparsify import AttachedSparsifier, StagedSparsifier


class StagedSparsification(Callback):
    """Prunes the group-sparse layers of a ``LightningModule`` stage by stage while ``Trainer.fit`` trains it.

    The length of the training is the trainer's own (``estimated_stepping_batches``). Masks and stages are in the
    module's checkpoints and the count of steps in the optimiser's, so ``fit(ckpt_path=...)`` goes on where it was.
    The copies of ``EMAWeightAveraging`` and other callbacks get the masks too. The kept fraction is logged as
    ``sparsification/kept_fraction`` whenever it changes.

    Args:
        **options: of :class:`~cnv2_plugin.sparsify.StagedSparsifier`: ``sparse_fraction``, ``start``, ``group_lasso``
            (its gradient is added before each step; keep it out of the loss).

    Raises:
        ValueError: at the start of training, if there is no sparse layer or no optimiser of one, the training has no
            length, or an option is out of range.

    Example:
        >>> Trainer(max_epochs=90, callbacks=[StagedSparsification(sparse_fraction=0.5)]).fit(module, loader)
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.sparsifier: Optional[StagedSparsifier] = None
        self._attached: Optional[AttachedSparsifier] = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach a sparsifier to the optimiser of the sparse layers; frozen ones may join it later."""
        self.on_train_end(trainer, pl_module)
        self.sparsifier = StagedSparsifier(pl_module, trainer.estimated_stepping_batches, **self.options)
        self._attached = AttachedSparsifier(self.sparsifier, trainer.optimizers, on_change=self._log(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimiser without our hooks."""
        if self._attached:
            self._attached.detach()
            self._attached = None

    def _log(self, trainer: Trainer):
        def log(sparsifier: StagedSparsifier) -> None:
            for logger in trainer.loggers:
                kept = {'sparsification/kept_fraction': sparsifier.sparsity()['total']}
                logger.log_metrics(kept, step=sparsifier.steps_done)

        return log

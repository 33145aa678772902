"""Packing after the last pruning stage, in mmengine's training loops."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...layers import GroupSparseConv2d
from ...sparsify import masked_optimizer_state, masked_state_dict, pack_model
from .runner_models import average_anew, ema_models, plain_model


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

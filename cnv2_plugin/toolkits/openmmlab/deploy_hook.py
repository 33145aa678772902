"""Deployment at the end of training and before testing."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...checkpoints.io import check_finite
from ...deploy import condense
from .deploy_files import save_deployed
from .runner_models import average_anew, ema_models, plain_model


@HOOKS.register_module()
class SwitchToDeployHook(Hook):
    """Tests the condensed model, and saves it when training ends.

    Before testing, the model (and the copies of EMA hooks) is condensed in place, so that the test measures the
    deployed form. After training, ``<last checkpoint>_deploy.pth`` and ``<last checkpoint>_deploy.py`` are written
    beside the last checkpoint; the config builds the model with ``deploy=True``. With an EMA hook the averaged weights
    are deployed, as they are what mmengine's checkpoints evaluate.

    Args:
        before_test: condense before testing.
        after_train: save the deployed form after training.

    Raises:
        UnfinishedPruningError: pruning is not finished.
        CheckpointError: weights or statistics are NaN or infinite; nothing is condensed or saved then.
        ValueError: the runner was not built from a config (``after_train`` only; raised before training).
    """

    priority = 'LOWEST'

    def __init__(self, before_test: bool = True, after_train: bool = True) -> None:
        self.condense_before_test = before_test
        self.save_after_train = after_train

    def before_train(self, runner: Runner) -> None:
        """Make sure that the config needed in the end is there."""
        if self.save_after_train and runner.cfg.get('model') is None:
            raise ValueError(
                'SwitchToDeployHook writes a config for the deployed model, but this runner was built without one; use '
                'Runner.from_cfg, or SwitchToDeployHook(after_train=False).'
            )

    def after_train(self, runner: Runner) -> None:
        """Save the deployed checkpoint and config."""
        if not self.save_after_train or not is_main_process():
            return
        averaged = ema_models(runner)
        model = averaged[0].module if averaged else plain_model(runner)
        check_finite(model.state_dict(), 'the trained model')
        last = Path(runner.message_hub.runtime_info.get('last_ckpt', Path(runner.work_dir) / 'last.pth'))
        checkpoint, config = (last.with_name(f'{last.stem}_deploy{suffix}') for suffix in ('.pth', '.py'))
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        if dataset_meta := getattr(runner.train_dataloader.dataset, 'metainfo', None):
            meta['dataset_meta'] = dataset_meta
        save_deployed(condense(model), checkpoint, config, runner.cfg, meta)
        runner.logger.info(f'Saved the deployed form as {checkpoint.name} and {config.name} in {checkpoint.parent}.')

    def before_test(self, runner: Runner) -> None:
        """Condense the model and its averaged copies in place."""
        if not self.condense_before_test:
            return
        models = [plain_model(runner), *(ema_model.module for ema_model in ema_models(runner))]
        for model in models:
            check_finite(model.state_dict(), 'the model to test')
        for model in models:
            condense(model, inplace=True)
        for ema_model in ema_models(runner):
            average_anew(ema_model)

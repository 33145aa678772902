"""The deployed form on disk: a checkpoint, and a config that builds the model for it; and the hook that writes them."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from ...checkpoints import save_checkpoint
from ...checkpoints.io import check_finite, staged
from ...deploy import condense
from .runner_config import average_anew, ema_models, plain_model

_DEPLOYABLE = ('CondenseNet', 'CondenseNetV2', 'SFRShuffleNetV2', 'SFRFPN', 'LearnedGroupModel')
_SURGERY_HOOK = 'LearnedGroupSurgeryHook'
_TRAINING_HOOKS = ('StagedSparsificationHook', 'PackedTrainingHook', 'CondensedTrainingHook', 'SwitchToDeployHook',
                   'EMAHook', _SURGERY_HOOK)  # fmt: skip


def deployed_config(cfg: Config) -> Config:
    """A copy of a config whose model is built condensed.

    Sets ``deploy=True`` on every backbone and neck of this package, and drops what belongs to training: pretrained
    weights, ``load_from``, ``resume``, and the hooks for sparsification, deployment and EMA. A surgery hook becomes a
    ``LearnedGroupModel`` around the model, which needs no hooks.
    """
    cfg = deepcopy(cfg)
    cfg.model = _with_surgery(cfg)
    _mark_deployed(cfg.model)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if _type_name(hook) not in _TRAINING_HOOKS]
    cfg.load_from = None
    cfg.resume = False
    return cfg


def save_deployed(
    condensed: nn.Module, checkpoint: Path, config: Path, cfg: Config, meta: Optional[dict[str, Any]] = None
) -> None:
    """Write the checkpoint of a condensed model, without wrapper, and the config that builds it from ``cfg``.

    Both files appear only after a model built from the new config has loaded the weights strictly.
    """
    new_cfg = deployed_config(cfg)
    try:
        build(new_cfg).load_state_dict(condensed.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f'The condensed model cannot be built from its config: only {", ".join(_DEPLOYABLE)} take deploy=True; '
            f'condense models with other sparse layers by cnv2_plugin.deploy.condense. ({error})'
        ) from error
    with staged(checkpoint, config) as (weights, text):
        save_checkpoint(condensed.state_dict(), weights, meta)
        new_cfg.dump(text)


def build(cfg: Config) -> nn.Module:
    """The model of a config, with the config's own preprocessing and what its surgery hook does to it."""
    options = deepcopy(_with_surgery(cfg))
    if cfg.get('data_preprocessor') is not None:
        options.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        return MODELS.build(options)


def _with_surgery(cfg: Config) -> Any:
    """The model's config, in a ``LearnedGroupModel`` where the config has a surgery hook."""
    model = cfg.model
    for hook in cfg.get('custom_hooks') or []:
        if _type_name(hook) == _SURGERY_HOOK:
            options = {key: value for key, value in hook.items() if key not in ('type', 'priority')}
            model = dict(type='LearnedGroupModel', model=model, **options)
    return model


def _mark_deployed(node: Any) -> None:
    if isinstance(node, Mapping):
        if _type_name(node) in _DEPLOYABLE:
            node['deploy'] = True
        if isinstance(node.get('init_cfg'), Mapping) and _type_name(node['init_cfg']) == 'Pretrained':
            node['init_cfg'] = None
        for child in node.values():
            _mark_deployed(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _mark_deployed(child)


def _type_name(node: Any) -> str:
    kind = node.get('type', '') if isinstance(node, Mapping) else type(node)
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


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

"""The deployed form on disk: a checkpoint, and a config that builds the model for it."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...checkpoints import atomic_path, save_checkpoint
from ...deploy import condense

_DEPLOYABLE = ('CondenseNet', 'CondenseNetV2', 'SFRShuffleNetV2', 'SFRFPN', 'LearnedGroupModel')
_SURGERY_HOOK = 'LearnedGroupSurgeryHook'
_TRAINING_HOOKS = (
    'StagedSparsificationHook',
    'PackedTrainingHook',
    'CondensedTrainingHook',
    'SwitchToDeployHook',
    'EMAHook',
    _SURGERY_HOOK,
)


def deployed_config(cfg: Config) -> Config:
    """A copy of a config whose model is built condensed.

    Sets ``deploy=True`` on every backbone and neck of this package, and drops what belongs to training: pretrained
    weights, ``load_from``, ``resume``, and the hooks for sparsification, deployment and EMA. A surgery hook becomes a
    ``LearnedGroupModel`` around the model, which needs no hooks.

    Args:
        cfg: config of the training form.
    """
    cfg = deepcopy(cfg)
    for hook in cfg.get('custom_hooks') or []:
        if _type_name(hook) == _SURGERY_HOOK:
            options = {key: value for key, value in hook.items() if key not in ('type', 'priority')}
            cfg.model = dict(type='LearnedGroupModel', model=cfg.model, **options)
    _mark_deployed(cfg.model)
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if _type_name(hook) not in _TRAINING_HOOKS]
    cfg.custom_hooks = hooks
    cfg.load_from = None
    cfg.resume = False
    return cfg


def save_deployed(
    model: nn.Module, cfg: Config, checkpoint: Path, config: Path, meta: Optional[dict[str, Any]] = None
) -> None:
    """Condense a copy of a trained model and write its checkpoint and config.

    Both files appear only after a model built from the new config has loaded the new weights strictly.

    Args:
        model: trained model without distributed wrapper, any part of it already condensed or not.
        cfg: config it was built from.
        checkpoint: path of the deployed weights.
        config: path of the config that builds the deployed model.
        meta: stored beside the weights, such as ``dataset_meta``.

    Raises:
        UnfinishedPruningError: pruning is not finished.
        ValueError: the model has condensed layers that the config cannot express.
    """
    condensed = condense(model).eval()
    new_cfg = deployed_config(cfg)
    _check_builds(new_cfg, condensed)
    save_checkpoint(condensed.state_dict(), checkpoint, meta)
    with atomic_path(config) as temporary:
        new_cfg.dump(temporary)


def _check_builds(cfg: Config, condensed: nn.Module) -> None:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        options = deepcopy(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            options.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
        rebuilt = MODELS.build(options)
    try:
        rebuilt.load_state_dict(condensed.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f'The condensed model cannot be built from its config: only {", ".join(_DEPLOYABLE)} take deploy=True; '
            f'condense models with other sparse layers by cnv2_plugin.deploy.condense. ({error})'
        ) from error


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
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2]

"""The models inside a runner: without wrapper, and the averaged copies of its EMA hooks."""

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...layers import GroupSparseConv2d


def plain_model(runner: Runner) -> nn.Module:
    """The runner's model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def ema_models(runner: Runner) -> list[nn.Module]:
    """The averaged models (``BaseAveragedModel``) of the runner's EMA hooks that have been set up."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model')]


def copy_pruning(source: nn.Module, target: nn.Module) -> None:
    """Give the sparse layers of ``target`` the masks and stages of ``source``, a model of the same structure."""
    for ours, theirs in zip(_sparse_layers(source), _sparse_layers(target)):
        theirs.mask.copy_(ours.mask)
        theirs.stage.copy_(ours.stage)


def _sparse_layers(model: nn.Module) -> list[GroupSparseConv2d]:
    return [m for m in model.modules() if isinstance(m, GroupSparseConv2d) and not m.deploy]

"""The models inside a runner: without wrapper, and the averaged copies of its EMA hooks."""

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def plain_model(runner: Runner) -> nn.Module:
    """The runner's model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def ema_models(runner: Runner) -> list[nn.Module]:
    """The averaged models (``BaseAveragedModel``) of the runner's EMA hooks that have been set up."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model')]


def average_anew(ema_model: nn.Module) -> None:
    """Let an averaged model average the tensors that it has now."""
    named = ema_model.module.named_parameters()
    ema_model.avg_parameters = ema_model.module.state_dict() if ema_model.update_buffers else dict(named)

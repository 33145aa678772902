"""Learned groups in models of other libraries, by config: as a hook, or around the model's own config."""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Optional, Union

from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from ...sparsify import SurgeryReport, to_learned_groups
from .runner_config import plain_model

Patterns = Union[str, Sequence[str], None]


@HOOKS.register_module()
class LearnedGroupSurgeryHook(Hook):
    """Lets the dense 1x1 convolutions of any model learn groups before it is trained or tested.

    Put it beside ``StagedSparsificationHook``, which then prunes them; weights that are trained already lose least
    where that is done early. Checkpoints of the original model load (``load_from``, ``init_cfg``), those of training
    resume, and the optimiser keeps its parameters. What is done and what it will save is logged.

    Args:
        groups: of a layer's outputs; as all others but the last see :func:`cnv2_plugin.sparsify.plan_learned_groups`.
        at_most: share of the dense model's multiply-adds to come down to. A choice by latency, which differs from one
            measurement to the next, is made once by :func:`cnv2_plugin.sparsify.plan_learned_groups`, and its names are
            given as ``include``: every process, a later sitting and the deployed config then have the same layers.

    Raises:
        ValueError: if nothing in the model can learn groups, or an argument is out of range.

    Example:
        >>> custom_hooks = [*_base_.get('custom_hooks', []),
        ...                 dict(type='LearnedGroupSurgeryHook', groups=4, factor=4, include='backbone'),
        ...                 dict(type='StagedSparsificationHook', sparse_fraction=0.1)]
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        groups: int = 4,
        factor: int = 4,
        include: Patterns = None,
        exclude: Patterns = None,
        min_channels: int = 32,
        input_size: Sequence[int] = (3, 224, 224),
        at_most: Optional[float] = None,
    ) -> None:
        self.options = dict(
            groups=groups, factor=factor, include=include, exclude=exclude,
            min_channels=min_channels, input_size=tuple(input_size), at_most=at_most,
        )  # fmt: skip
        self.report: Optional[SurgeryReport] = None

    def before_run(self, runner: Runner) -> None:
        """Change the model, once."""
        if self.report is None:
            self.report = to_learned_groups(plain_model(runner), **self.options)
            runner.logger.info(str(self.report))


@MODELS.register_module(name='LearnedGroupModel')
def build_learned_group_model(model: Mapping[str, Any], deploy: bool = False, **options: Any) -> nn.Module:
    """Build a model whose dense 1x1 convolutions learn groups, as the hook makes it, where there is no runner.

    Args:
        model: config of the model.
        deploy: build the condensed form.
        **options: arguments of :class:`LearnedGroupSurgeryHook`; others, which a runner adds (``data_preprocessor``),
            are passed on to the model.

    Returns:
        The model itself, with the parameter names of the original.
    """
    names = inspect.signature(LearnedGroupSurgeryHook).parameters.keys() & options.keys()
    surgery = LearnedGroupSurgeryHook(**{name: options.pop(name) for name in names})
    built = MODELS.build({**options, **deepcopy(dict(model))})
    to_learned_groups(built, deploy=deploy, **surgery.options)
    return built

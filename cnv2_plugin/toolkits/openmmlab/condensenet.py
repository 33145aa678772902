"""CondenseNet and CondenseNetV2 as OpenMMLab backbones."""

from collections.abc import Mapping
from typing import Any, Union

from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ...archs import CondenseNetArch, arch_from, closest, variants_of
from ...models import CondenseNetTrunk
from .backbone import OpenMMLabBackbone


@MODELS.register_module()
class CondenseNetV2(OpenMMLabBackbone, CondenseNetTrunk, BaseModule):
    """CondenseNetV2 (arXiv 2104.04382) for mmpretrain, mmdet and other OpenMMLab libraries.

    The last output is normalised and activated by ``norm``. Every other output is what leaves the stage: dense features
    are **pre-activation**, each reader normalises them itself. Detection necks read them better with ``out_norm=True``.

    Args:
        arch: ``'a'``, ``'b'``, ``'c'``, ``'110-cifar'``, ``'146-cifar'``, or a dict of the fields of
            :class:`~cnv2_plugin.archs.CondenseNetArch`.
        lgc_drop_rate: dropout probability inside the learned group convolutions.
        **options: see :class:`OpenMMLabBackbone`: ``in_channels``, ``out_indices``, ``frozen_stages``, ``norm_eval``,
            ``norm_cfg``, ``act_cfg``, ``with_cp``, ``out_norm``, ``deploy``, ``init_cfg``; and
            :class:`~cnv2_plugin.models.CondenseNetTrunk`: ``zero_init_sfr``.

    Raises:
        ValueError: ``arch`` names no variant, or a field of it does not fit.
        TypeError: ``arch`` is neither a name nor a dict.

    Example:
        >>> backbone = CondenseNetV2('a', out_indices=(0, 1, 2, 3, 4))
        >>> for out in backbone(torch.rand(1, 3, 224, 224)):
        ...     print(tuple(out.shape))
        (1, 24, 112, 112)
        (1, 32, 56, 56)
        (1, 96, 28, 28)
        (1, 288, 14, 14)
        (1, 800, 7, 7)
    """

    final_is_output = False
    _defaults: Mapping[str, Any] = {}

    def __init__(self, arch: Union[str, Mapping[str, Any]] = 'a', lgc_drop_rate: float = 0.0, **options) -> None:
        if isinstance(arch, str):
            variants = variants_of(type(self).__name__)
            if arch.lower() not in variants:
                close = ', '.join(map(repr, closest(arch.lower(), map(str, variants))))
                raise ValueError(
                    f'arch is {arch!r}; give a name (did you mean one of {close}?), or a dict of its fields.'
                )
            arch = variants[arch.lower()].arch
        elif isinstance(arch, Mapping):
            arch = arch_from(CondenseNetArch, {**self._defaults, **arch})
        elif not isinstance(arch, CondenseNetArch):
            raise TypeError(f'arch is a {type(arch).__name__}; it takes a name in quotes, or a dict of its fields.')
        super().__init__(arch, lgc_drop_rate=lgc_drop_rate, **options)


@MODELS.register_module()
class CondenseNet(CondenseNetV2):
    """CondenseNet (arXiv 1711.09224): as :class:`CondenseNetV2`, without reactivation.

    Args:
        arch: ``'74-g4'``, ``'74-g8'``, ``'50-cifar'``, ``'74-cifar'``, ``'86-cifar'``, ``'98-cifar'``, ``'110-cifar'``,
            ``'122-cifar'``, or a dict of the fields of :class:`~cnv2_plugin.archs.CondenseNetArch`.
        lgc_drop_rate: dropout probability inside the learned group convolutions.
        **options: see :class:`OpenMMLabBackbone`.

    Raises:
        ValueError: ``arch`` names no variant, or a field of it does not fit (``groups_sfr`` other than 0 among them).
        TypeError: ``arch`` is neither a name nor a dict.

    Example:
        >>> backbone = CondenseNet('74-g8', out_indices=(2, 3, 4))
        >>> for out in backbone(torch.rand(1, 3, 224, 224)):
        ...     print(tuple(out.shape))
        (1, 400, 28, 28)
        (1, 1040, 14, 14)
        (1, 2064, 7, 7)
    """

    _defaults = dict(groups_sfr=0)

    def __init__(self, arch: Union[str, Mapping[str, Any]] = '74-g8', lgc_drop_rate: float = 0.0, **options) -> None:
        super().__init__(arch, lgc_drop_rate, **options)
        if self.arch.groups_sfr:
            raise ValueError(f'arch has groups_sfr={self.arch.groups_sfr}; CondenseNet has none, use CondenseNetV2.')

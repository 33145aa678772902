"""ShuffleNetV2 with sparse feature reactivation as OpenMMLab backbone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ...archs import ShuffleNetArch, arch_from, variants_of
from ...models import ShuffleNetTrunk
from .backbone import OpenMMLabBackbone


@MODELS.register_module()
class SFRShuffleNetV2(OpenMMLabBackbone, ShuffleNetTrunk, BaseModule):
    """ShuffleNetV2 (arXiv 1807.11164) with or without SFR (CondenseNetV2, section 3.4).

    Outputs 0 to 2 leave the stages; output 3, the default, is the last 1x1 convolution. As in mmpretrain's
    ``ShuffleNetV2``, detectors take ``out_indices=(0, 1, 2)``.

    Args:
        widen_factor: 0.5, 1.0, 1.5 or 2.0.
        with_sfr: False gives plain ShuffleNetV2.
        arch: a dict of the fields of :class:`~cnv2_plugin.archs.ShuffleNetArch`, in place of ``widen_factor``.
        **options: see :class:`OpenMMLabBackbone`: ``in_channels``, ``out_indices``, ``frozen_stages``, ``norm_eval``,
            ``norm_cfg``, ``act_cfg``, ``with_cp``, ``out_norm``, ``deploy``, ``init_cfg``;
            and :class:`~cnv2_plugin.models.ShuffleNetTrunk`: ``zero_init_sfr``, ``output_stride``.

    Raises:
        ValueError: ``widen_factor`` is none of the published ones, or a field of ``arch`` does not fit.
        TypeError: ``arch`` is no dict.

    Example:
        >>> backbone = SFRShuffleNetV2(1.0, out_indices=(0, 1, 2, 3))
        >>> for out in backbone(torch.rand(1, 3, 224, 224)):
        ...     print(tuple(out.shape))
        (1, 116, 28, 28)
        (1, 232, 14, 14)
        (1, 464, 7, 7)
        (1, 1024, 7, 7)
    """

    final_is_output = True

    def __init__(
        self,
        widen_factor: float = 1.0,
        with_sfr: bool = True,
        arch: Optional[Mapping[str, Any]] = None,
        **options,
    ) -> None:
        if arch is None:
            variants = variants_of('SFRShuffleNetV2')
            if widen_factor not in variants:
                raise ValueError(
                    f'widen_factor is {widen_factor!r}; it takes {", ".join(map(str, sorted(variants)))}; for other '
                    f'widths give arch=dict(channels=..., repeats=...).'
                )
            arch = variants[widen_factor].arch
        super().__init__(replace(arch_from(ShuffleNetArch, arch), with_sfr=with_sfr), **options)

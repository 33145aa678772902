"""The feature pyramid whose coarser levels reactivate the finer ones."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from mmdet.models.necks import FPN
from torch import Tensor, nn

from ...layers import SparseFeatureReactivation
from .backbone import StrictForm, norm_layer_from


class SFRFPN(StrictForm, FPN):
    """A feature pyramid network in which each coarser level also reactivates the finer one through SFR.

    Top-down: ``finer = lateral + up(coarser) + up(SFR(coarser))``, where plain FPN has ``lateral + up(coarser)``. SFR
    is computed before upsampling, which is cheaper and, as upsampling is linear, gives the same result. The layers in
    ``reactivations`` are pruned by ``StagedSparsificationHook`` and condensed with the backbone.

    Once pruned, SFR adds ``out_channels ** 2 / sparse_factor`` multiply-adds for each pixel of each coarser level.

    Args:
        in_channels: channels of each input level.
        out_channels: channels of every output level.
        num_outs: number of output levels.
        with_sfr: False gives mmdet's FPN, with identical keys.
        groups: groups ``G`` of reactivation; divides ``out_channels``.
        sparse_factor: ``S`` of reactivation.
        sfr_norm_cfg: normalisation of reactivation, ``'BN'`` or ``'SyncBN'``.
        deploy: build the group-convolution form of reactivation.
        **fpn_options: the other arguments of :class:`mmdet.models.necks.FPN`.

    Raises:
        ValueError: ``groups`` does not divide ``out_channels``, or ``sfr_norm_cfg`` cannot be condensed.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        with_sfr: bool = True,
        groups: int = 8,
        sparse_factor: int = 8,
        sfr_norm_cfg: Mapping[str, Any] = dict(type='BN'),  # noqa: B006
        deploy: bool = False,
        **fpn_options,
    ) -> None:
        super().__init__(list(in_channels), out_channels, num_outs, **fpn_options)
        self.deploy = deploy
        self.with_sfr = with_sfr
        if with_sfr:
            make = partial(
                SparseFeatureReactivation, out_channels, out_channels, groups, sparse_factor,
                norm_layer=norm_layer_from(sfr_norm_cfg), deploy=deploy,
            )  # fmt: skip
            self.reactivations = nn.ModuleList(make() for _ in self.lateral_convs[1:])

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map one ``(N, in_channels[i], H_i, W_i)`` a level to ``num_outs`` maps of ``out_channels`` channels."""
        if not self.with_sfr:
            return super().forward(inputs)
        if len(inputs) != len(self.in_channels):
            raise ValueError(f'SFRFPN got {len(inputs)} feature maps; it was built for {len(self.in_channels)}.')
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[self.start_level :])]
        for i in range(len(laterals) - 1, 0, -1):
            coarser = laterals[i] + self.reactivations[i - 1](laterals[i])
            size = None if 'scale_factor' in self.upsample_cfg else laterals[i - 1].shape[2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(coarser, size, **self.upsample_cfg)
        outs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals)]
        sources = dict(on_input=inputs[self.backbone_end_level - 1], on_lateral=laterals[-1], on_output=outs[-1])
        x = sources.get(self.add_extra_convs, outs[-1])
        for i in range(len(outs), self.num_outs):
            if self.add_extra_convs:
                x = self.fpn_convs[i](F.relu(x) if self.relu_before_extra_convs and i > len(laterals) else x)
            else:
                x = F.max_pool2d(x, 1, stride=2)
            outs.append(x)
        return tuple(outs)

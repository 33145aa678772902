"""Necks: pooling with squeeze-and-excitation, and pyramids with reactivation."""

from collections.abc import Mapping, Sequence
from typing import Any, Union

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import SparseFeatureReactivation, SqueezeExcite
from .backbone import StrictForm, norm_layer_from


@MODELS.register_module()
class SEGlobalPooling(BaseModule):
    """Global average pooling and squeeze-and-excitation, as CondenseNetV2 has before its last two linear layers.

    With ``StackedLinearClsHead(in_channels=channels, mid_channels=[F], act_cfg=dict(type='HSwish'))`` behind it, the
    logits are those of the timm model.

    Args:
        channels: channels of the backbone's last output.
        reduction: the hidden width is ``channels // reduction``.
        init_cfg: mmengine's initialisation.

    Example:
        >>> neck = SEGlobalPooling(800)
        >>> neck((torch.rand(2, 800, 7, 7),))[0].shape
        torch.Size([2, 800])
    """

    def __init__(self, channels: int, reduction: int = 16, init_cfg=None) -> None:
        super().__init__(init_cfg)
        if not 1 <= reduction <= channels:
            raise ValueError(f'SEGlobalPooling has reduction={reduction}; it takes 1 to channels={channels}.')
        self.se = SqueezeExcite(channels, channels // reduction)

    def forward(self, inputs: Union[Tensor, tuple[Tensor, ...]]) -> Union[Tensor, tuple[Tensor, ...]]:
        """Map ``(N, C, H, W)`` to ``(N, C)``; the last one if there are several feature maps.

        Raises:
            TypeError: ``inputs`` is neither a tensor nor a tuple or list of them.
        """
        if isinstance(inputs, Tensor):
            return self.se(inputs.mean((2, 3), keepdim=True)).flatten(1)
        if isinstance(inputs, (tuple, list)):
            return (self(inputs[-1]),)
        raise TypeError(f'SEGlobalPooling got a {type(inputs).__name__}; it takes a tensor or a tuple of tensors.')


@MODELS.register_module()
class SFRTopDown(StrictForm, BaseModule):
    """Reactivates the finer levels of a pyramid from the coarser ones, before another neck.

    From the coarsest level on, ``finer = finer + up(SFR(coarser))`` with nearest upsampling, as in ``SFRFPN`` but
    without convolutions of its own: put it between ``ChannelMapper`` and another neck, such as ``CSPNeXtPAFPN``.

    Args:
        in_channels: channels of each level, finest first; those of the outputs are the same.
        groups: groups ``G`` of reactivation; divides every count of channels.
        sparse_factor: ``S`` of reactivation.
        norm_cfg: normalisation of reactivation, ``'BN'`` or ``'SyncBN'``.
        deploy: build the condensed form.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: ``groups`` does not divide the channels, or ``norm_cfg`` cannot be condensed.

    Example:
        >>> neck = SFRTopDown([16, 16], groups=4, sparse_factor=4)
        >>> [tuple(x.shape) for x in neck((torch.rand(1, 16, 8, 8), torch.rand(1, 16, 4, 4)))]
        [(1, 16, 8, 8), (1, 16, 4, 4)]
    """

    def __init__(
        self, in_channels: Sequence[int], groups: int = 8, sparse_factor: int = 8,
        norm_cfg: Mapping[str, Any] = dict(type='BN'), deploy: bool = False, init_cfg=None,  # noqa: B006
    ) -> None:  # fmt: skip
        super().__init__(init_cfg)
        self.deploy = deploy
        norm_layer = norm_layer_from(norm_cfg)
        self.reactivations = nn.ModuleList(
            SparseFeatureReactivation(coarse, fine, groups, sparse_factor, norm_layer=norm_layer, deploy=deploy)
            for fine, coarse in zip(in_channels, in_channels[1:])
        )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map one ``(N, C, H, W)`` a level, finest first, to as many of the same shapes.

        Raises:
            ValueError: there are more or fewer levels than the neck was built for.
        """
        if len(inputs) != len(self.reactivations) + 1:
            raise ValueError(f'SFRTopDown got {len(inputs)} levels; it was built for {len(self.reactivations) + 1}.')
        levels = list(inputs)
        for i in range(len(levels) - 1, 0, -1):
            added = self.reactivations[i - 1](levels[i])
            levels[i - 1] = levels[i - 1] + F.interpolate(added, size=levels[i - 1].shape[2:])
        return tuple(levels)


@MODELS.register_module(name='SFRFPN')
def build_sfr_fpn(**options):
    """Build :class:`~cnv2_plugin.toolkits.openmmlab.sfr_fpn.SFRFPN`, importing mmdet only now.

    Raises:
        ImportError: mmdet is missing or refuses the installed versions.
    """
    try:
        from .sfr_fpn import SFRFPN
    except (ImportError, AssertionError) as error:
        raise ImportError(f'SFRFPN is built on the FPN of mmdet, which cannot be imported here: {error}') from error
    return SFRFPN(**options)

"""Necks: pooling with squeeze-and-excitation, and the feature pyramid with reactivation."""

from typing import Union

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from ...layers import SqueezeExcite


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

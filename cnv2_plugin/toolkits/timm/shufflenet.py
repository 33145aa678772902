"""ShuffleNetV2 and SFR-ShuffleNetV2 for timm."""

from ...archs import ShuffleNetArch, arch_from
from ...models import ShuffleNetTrunk
from .entrypoints import register_family
from .head import TimmModel


class ShuffleNet(TimmModel, ShuffleNetTrunk):
    """ShuffleNetV2 (arXiv 1807.11164), with or without sparse feature reactivation, and timm's head.

    Args:
        arch: shape, or a dict of its fields.
        **options: see :class:`TimmModel` and :class:`ShuffleNetTrunk`; among them ``deploy=True`` for the
            group-convolution form.
    """

    first_conv = 'stem.conv'
    final_is_norm = False
    stem_feature = (4, 'stem.pool')

    def __init__(self, arch, **options) -> None:
        super().__init__(arch_from(ShuffleNetArch, arch), **options)


register_family(globals(), ShuffleNet, 'ShuffleNetV2', custom='shufflenetv2', like='shufflenetv2_x1_0', with_sfr=False)
register_family(
    globals(), ShuffleNet, 'SFRShuffleNetV2', custom='sfr_shufflenetv2', like='sfr_shufflenetv2_x1_0', with_sfr=True
)

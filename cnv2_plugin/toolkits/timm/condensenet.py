"""CondenseNet and CondenseNetV2 for timm."""

from ...archs import CondenseNetArch, arch_from
from ...models import CondenseNetTrunk
from .entrypoints import register_family
from .head import TimmModel


class CondenseNet(TimmModel, CondenseNetTrunk):
    """CondenseNet or CondenseNetV2 with timm's head (CondenseNetV2, section 4).

    With ``arch.head_width`` the head is global pool, squeeze-and-excitation, linear, hard-swish, classifier; otherwise
    global pool and classifier.

    Args:
        arch: shape, or a dict of its fields.
        **options: see :class:`TimmModel` and :class:`CondenseNetTrunk`; among them ``deploy=True`` for the
            group-convolution form.
    """

    first_conv = 'stem'
    final_is_norm = True

    def __init__(self, arch, **options) -> None:
        arch = arch_from(CondenseNetArch, arch)
        super().__init__(arch, head_width=arch.head_width, **options)


register_family(globals(), CondenseNet, 'CondenseNetV2', custom='condensenetv2', like='condensenetv2_a')
register_family(globals(), CondenseNet, 'CondenseNet', custom='condensenet', like='condensenet_74_g8', groups_sfr=0)

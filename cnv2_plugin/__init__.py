"""CondenseNetV2, CondenseNet and SFR-ShuffleNetV2 for timm, MMPretrain and MMDetection.

Importing the package registers its models with every supported toolkit that is installed.
"""

from .interrupt import end_at_interrupt

end_at_interrupt()

from .toolkits import register_all  # noqa: E402

__version__ = '1.0.0'

register_all()

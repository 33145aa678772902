"""CondenseNetV2, CondenseNet and SFR-ShuffleNetV2 for timm, MMPretrain and MMDetection.

Importing the package registers its models with every supported toolkit that is installed.
"""

from .toolkits import register_all

__version__ = '1.0.0'

register_all()

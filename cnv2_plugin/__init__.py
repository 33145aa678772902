"""CondenseNetV2, CondenseNet and SFR-ShuffleNetV2 for timm, MMPretrain and MMDetection.

Importing the package registers its models with every supported toolkit that is installed.
"""

import sys
from pathlib import Path

__version__ = '1.0.0'

try:
    from .toolkits import register_all

    register_all()
except KeyboardInterrupt:
    if Path(sys.argv[0]).stem != 'cnv2' and sys.orig_argv[1:3] != ['-m', 'cnv2_plugin']:
        raise
    print('cnv2: interrupted', file=sys.stderr)
    raise SystemExit(130) from None

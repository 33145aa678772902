"""``python -m cnv2_plugin``: the same as ``cnv2``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())

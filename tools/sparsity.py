"""Same as ``cnv2 sparsity``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['sparsity', *sys.argv[1:]]))

"""Same as ``cnv2 heatmap``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['heatmap', *sys.argv[1:]]))

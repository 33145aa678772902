"""Same as ``cnv2 train``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))

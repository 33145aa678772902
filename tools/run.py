"""Same as ``cnv2 run``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['run', *sys.argv[1:]]))

"""Same as ``cnv2 test``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['test', *sys.argv[1:]]))

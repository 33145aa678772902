"""Same as ``cnv2 env``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['env', *sys.argv[1:]]))

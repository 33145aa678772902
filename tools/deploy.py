"""Same as ``cnv2 deploy``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['deploy', *sys.argv[1:]]))

"""Same as ``cnv2 cost``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['cost', *sys.argv[1:]]))

"""Same as ``cnv2 configs``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['configs', *sys.argv[1:]]))

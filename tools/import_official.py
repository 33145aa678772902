"""Same as ``cnv2 import-official``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['import-official', *sys.argv[1:]]))

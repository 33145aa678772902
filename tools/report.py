"""Same as ``cnv2 report``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['report', *sys.argv[1:]]))

"""Write a finished model for a runtime: ``cnv2 export``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))

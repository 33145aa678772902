"""Same as ``cnv2 convert-keys``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['convert-keys', *sys.argv[1:]]))

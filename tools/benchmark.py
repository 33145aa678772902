"""Compare the latency of the forms of a model: ``cnv2 benchmark``."""

import sys

from cnv2_plugin.cli import main

if __name__ == '__main__':
    sys.exit(main(['benchmark', *sys.argv[1:]]))

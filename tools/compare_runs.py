"""Trains what is missing of several runs, with several seeds, and prints one Markdown table.

Runs are a suite of networks (``python tools/compare_runs.py headline-s``) or OpenMMLab configs. What is finished is not
done again and what was stopped goes on, so the same command continues a list on another day.
"""

import sys

from cnv2_plugin.experiments.compare import main

if __name__ == '__main__':
    sys.exit(main())

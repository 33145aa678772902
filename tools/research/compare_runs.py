"""Trains what is missing of several runs, with several seeds, and prints one Markdown table.

Runs are a suite of networks (``python tools/research/compare_runs.py headline-s``) or OpenMMLab configs. What is
finished is not done again and what was stopped goes on, so the same command continues a list on another day.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.research.runs_table import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())

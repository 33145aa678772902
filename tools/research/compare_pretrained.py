"""Makes one pretrained network smaller in several ways, with the same images for all, and prints what they keep.

Takes hours on one core. What is finished is not done again and what was stopped goes on from its last epoch, so the
same command continues on another day; ``--table`` prints what there is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.research.pretrained_runs import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())

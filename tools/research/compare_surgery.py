"""Fine-tunes one pretrained network dense, with learned groups, and with learned groups and reactivation.

Prints a Markdown table and writes it with all figures and a picture into ``--out``. What is trained already is not
trained again and what was stopped goes on, so the same command continues on another day.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.research.surgery_runs import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())

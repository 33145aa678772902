"""Fine-tunes one pretrained network dense, with learned groups, and with learned groups and reactivation.

Prints a Markdown table and writes it with all figures and a picture into ``--out``. What is trained already is not
trained again and what was stopped goes on, so the same command continues on another day.
"""

import sys

from cnv2_plugin.experiments.compare_surgery import main

if __name__ == '__main__':
    sys.exit(main())

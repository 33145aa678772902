"""Kernels of another build: CNV2_TEST_KERNELS names the library, such as one made with sanitizers."""

import os
from pathlib import Path

from cnv2_plugin.kernels import library

if os.environ.get('CNV2_TEST_KERNELS'):
    library.FILE = Path(os.environ['CNV2_TEST_KERNELS'])

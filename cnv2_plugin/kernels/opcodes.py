"""The numbers that programs are written in, read from the source of the kernels, ``csrc/opcodes.h``."""

import re
from pathlib import Path


def _numbers() -> dict[str, dict[str, int]]:
    """Numbers by enumeration and name."""
    text = (Path(__file__).parent / 'csrc/opcodes.h').read_text()
    return {
        enum: {name: int(value, 0) for name, value in re.findall(r'k(\w+) = (\w+)', body)}
        for enum, body in re.findall(r'enum (\w+) : int32_t \{(.*?)\};', text, re.DOTALL)
    }


_NUMBERS = _numbers()
MAGIC, VERSION = _NUMBERS['Format']['Magic'], _NUMBERS['Format']['Version']
OPERATIONS, LOADING, FLAGS = _NUMBERS['Operation'], _NUMBERS['Loading'], _NUMBERS['Flag']
ACTIVATIONS = _NUMBERS['Activation']
"""Activations that the kernels know, by the names of ``torch.nn`` classes."""
CHANGES = _NUMBERS['Change']
"""Changes of height and width: ``HalvedDown``, ``HalvedUp``, ``ToOnePixel``."""
BLOCK = _NUMBERS['Size']['Block']
"""Rows of a group whose weights lie side by side."""
MOST_WEIGHT = _NUMBERS['Size']['MostWeight']
"""Largest weight of a 1x1 convolution of bytes."""
MOST_LONE_WEIGHT = _NUMBERS['Size']['MostLoneWeight']
"""Largest weight in bytes where products are floats."""
MOST_BYTE_INPUTS = _NUMBERS['Size']['MostByteInputs']
"""Inputs of one group of a 1x1 convolution of bytes that the kernels take."""
MOST_SPATIAL_INPUTS = _NUMBERS['Size']['MostSpatialInputs']
"""Inputs of one group of a 3x3 convolution that the kernels take."""

"""What a deployed file says of itself: the one place that reads it.

Values are JSON, or plain text. All but ``mean`` have a default, so that files of earlier versions are read too.

=================  ====================================================================================
``kind``           ``classifier``, ``detector`` or ``segmenter``; else told by the names of the outputs
``version``        of the package that wrote the file
``size``           ``[C, H, W]``; else the file's own input, where it is fixed
``mean``, ``std``  of each channel, on the scale of ``range``
``range``          1 or 255: the value of white before normalising; else 1 in files with ``arch``, or 255
``channel_order``  ``RGB`` or ``BGR``
``resize``         ``["short", edge]``, ``["inside", H, W]`` or ``["exact", H, W]``; else from ``crop_pct``
``interpolation``  ``bilinear``, ``bicubic``, ``nearest`` or ``lanczos``
``backend``        of the resizing: ``pillow`` or ``opencv``
``pad_value``      grey level around smaller images; else 0 after normalising
``stride``         what height and width have to be multiples of, where they are free
``clips``          whether boxes end at the edges of the image; so by default
``align_corners``  how a segmenter's logits are resized, where the file holds them; not so by default
``threshold``      of a segmenter with one channel
``classes``        names, in the order of the outputs
``num_classes``    their number, of detectors and segmenters
=================  ====================================================================================
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .. import __version__

_OUTPUTS = {'logits': 'classifier', 'boxes': 'detector', 'mask': 'segmenter'}
RESIZES = ('short', 'inside', 'exact')


class FileKindError(ValueError):
    """A file that is no deployed model, or one of a kind that this version does not know."""


@dataclass(frozen=True)
class Description:
    """What the table above says; ``size`` is ``(H, W)``, ``mean`` and ``std`` are on a scale of 0 to 255."""

    kind: str
    channels: int
    size: tuple[int, int]
    is_free: bool  # whether height and width may be others
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    resize: tuple[Any, ...]
    interpolation: str
    backend: str
    pad_value: Optional[float]
    stride: int
    clips: bool
    classes: tuple[str, ...]
    mask_threshold: float
    align_corners: bool
    threshold: float


def describe(path: str, texts: Mapping[str, str], shape: list, outputs: list[str], given: dict) -> Description:
    """Read what a file says.

    Args:
        path: of the file, for messages.
        texts: its metadata.
        shape: of its input; text or None where it is free.
        outputs: their names.
        given: values in place of those of the file.

    Raises:
        FileKindError: the file is of another kind or newer than this package, or lacks what is needed.
    """
    found = {**{key: _value(text) for key, text in texts.items()}, **given}
    if not {'version', 'arch', 'mean'} & found.keys():
        raise FileKindError(f'{path} is no file of cnv2 deploy: it does not say its mean; give one that deploy wrote.')
    version = str(found.get('version', '0'))
    if _numbers(version)[:2] > _numbers(__version__)[:2]:
        raise FileKindError(f'{path} is of cnv2_plugin {version}, newer than the {__version__} here; update it.')
    if found.get('unsupported'):
        raise FileKindError(
            f'{path} was trained behind {", ".join(found["unsupported"])} in its test pipeline, which serving does not '
            f'know; prepare its images yourself and open it with onnxruntime.'
        )
    kind = str(found.get('kind') or next((kind for name, kind in _OUTPUTS.items() if name in outputs), ''))
    if kind not in _OUTPUTS.values() or len(shape) != 4:
        raise FileKindError(
            f'{path} holds {kind or "outputs"} ({", ".join(outputs)}), which serving does not answer with; give a '
            f'classifier, detector or segmenter.'
        )
    size = found.get('size') or shape[1:]
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size) or size[0] not in (1, 3):
        raise FileKindError(f'{path} says no size of images of 1 or 3 channels but {size}; give size=(C, H, W).')
    mean, std = (_channels(found.get(name, default), size[0]) for name, default in (('mean', 0), ('std', 1)))
    if not len(mean) == len(std) == size[0]:
        raise FileKindError(f'{path} takes {size[0]} channels but has mean {list(mean)}; give mean=... and std=....')
    scale = 255 / found.get('range', 1 if 'arch' in found else 255)
    return Description(
        kind, size[0], tuple(size[1:]), not all(isinstance(side, int) for side in shape[2:]),
        tuple(value * scale for value in mean), tuple(value * scale for value in std),
        found.get('channel_order') or ('RGB' if _is_rgb(found) else 'BGR'), _resize(path, found, kind, size),
        found.get('interpolation', 'bilinear'), found.get('backend', 'pillow' if 'arch' in found else 'opencv'),
        found.get('pad_value'), _stride(found),
        found.get('clips', True), tuple(map(str, found.get('classes', ()))), found.get('mask_thr_binary', 0.5),
        bool(found.get('align_corners', False)), found.get('threshold') or 0.5,
    )  # fmt: skip


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else 0 for part in version.split('.')]


def _channels(value: Any, channels: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * channels if len(values) == 1 else values


def _stride(found: dict) -> int:
    if not {'pad_size_divisor', 'stride'} & found.keys():
        return 32
    return math.lcm(found.get('pad_size_divisor', 1), found.get('stride', 1))


def _is_rgb(found: dict) -> bool:
    return 'arch' in found or bool(found.get('to_rgb') or found.get('bgr_to_rgb'))


def _resize(path: str, found: dict, kind: str, size: list[int]) -> tuple[Any, ...]:
    if 'resize' in found:
        if found['resize'][0] not in RESIZES:
            raise FileKindError(f'{path} says resize {found["resize"]}; it takes one of {", ".join(RESIZES)}.')
        return tuple(found['resize'])
    if kind == 'detector':
        return ('inside', *size[1:])
    if 'crop_pct' in found and size[1] == size[2]:
        return ('short', math.floor(size[1] / found['crop_pct']))
    return ('exact', *size[1:])

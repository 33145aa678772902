"""From an image to the input of a file, as the test pipeline of its config does it."""

import io
import math
import os
from pathlib import Path
from typing import NamedTuple, Union

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from .metadata import Description

ImageLike = Union[str, Path, bytes, Image.Image, numpy.ndarray]
_FILTERS = {name: getattr(Image.Resampling, name.upper()) for name in ('nearest', 'bilinear', 'bicubic', 'lanczos')}


class Prepared(NamedTuple):
    """The input of a file, and how to come back: size of the original, its scale in the input, and the region used."""

    array: numpy.ndarray
    original: tuple[int, int]
    scale: tuple[float, float]
    inside: tuple[int, int]


def open_image(source: ImageLike, mode: str = 'RGB') -> Image.Image:
    """Read an image, upright, from a path, bytes, Pillow, or ``uint8 (H, W)``, ``(H, W, 1)`` or RGB ``(H, W, 3)``.

    Raises:
        ValueError: it is no readable image.
        TypeError: it is of another type.
    """
    if isinstance(source, numpy.ndarray):
        if source.dtype != numpy.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (1,), (3,)):
            raise TypeError(
                f'an image is {source.dtype} {source.shape}; it takes uint8 (H, W), (H, W, 1) or (H, W, 3).'
            )
        if not source.size:
            raise ValueError(f'an image has the shape {source.shape}; it takes at least one pixel.')
        source = Image.fromarray(numpy.ascontiguousarray(source[..., 0] if source.shape[2:] == (1,) else source))
    elif isinstance(source, (str, bytes, os.PathLike)):
        name = 'the image' if isinstance(source, bytes) else source
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
                file.load()
                source = file
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = 'there is no such file' if isinstance(error, FileNotFoundError) else error
            raise ValueError(f'{name} is no readable image ({reason}); leave it out.') from error
    elif not isinstance(source, Image.Image):
        raise TypeError(
            f'an image is a {type(source).__name__}; it takes a path, bytes, a Pillow image or a uint8 array.'
        )
    source = ImageOps.exif_transpose(source)
    if source.mode.startswith('I;16'):
        source = Image.fromarray((numpy.asarray(source) >> 8).astype(numpy.uint8))
    return source.convert(mode)


def prepare(image: Image.Image, to: Description) -> Prepared:
    """Resize, crop or pad, and normalise."""
    width, height = image.size
    new = _new_size(height, width, to)
    pixels = numpy.asarray(_resized(image, new, to), numpy.float32).reshape(*new, to.channels)
    if to.channel_order == 'BGR':
        pixels = pixels[..., ::-1]
    mean, std = numpy.array(to.mean, numpy.float32), numpy.array(to.std, numpy.float32)
    target = to.size
    if to.is_free and to.kind != 'classifier':
        target = (-(-new[0] // to.stride) * to.stride, -(-new[1] // to.stride) * to.stride)
    top, left = (max(0, round((have - want) / 2)) for have, want in zip(new, target))
    pixels = pixels[top : top + target[0], left : left + target[1]]
    inside = pixels.shape[:2]
    edges = [(0, want - have) for want, have in zip(target, inside)] + [(0, 0)]
    if to.pad_value is not None:
        pixels = numpy.pad(pixels, edges, constant_values=to.pad_value)
    pixels = (pixels - mean) / std
    if to.pad_value is None:
        pixels = numpy.pad(pixels, edges)
    array = numpy.ascontiguousarray(pixels.transpose(2, 0, 1), numpy.float32)
    return Prepared(array, (height, width), (new[1] / width, new[0] / height), inside)


def _new_size(height: int, width: int, to: Description) -> tuple[int, int]:
    way, *sides = to.resize
    if way == 'short':
        edge = sides[0]
        return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)
    if way == 'inside':
        scale = min(max(sides) / max(height, width), min(sides) / min(height, width))
        return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))
    return sides[0], sides[1]


def _resized(image: Image.Image, new: tuple[int, int], to: Description) -> Image.Image:
    """Resize as Pillow does, or as OpenCV, which does not average: bilinear, within one grey level of it."""
    size, kind = (new[1], new[0]), _FILTERS[to.interpolation]
    if size == image.size:
        return image
    if to.backend == 'pillow':
        return image.resize(size, kind)
    across, down = image.width / size[0], image.height / size[1]
    return image.transform(size, Image.Transform.AFFINE, (across, 0, 0, 0, down, 0), kind)

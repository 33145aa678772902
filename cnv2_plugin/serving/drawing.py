"""Answers drawn into images."""

import colorsys

import numpy
from PIL import Image, ImageDraw

from .answers import Classification, Detection, Segmentation


def draw(image: Image.Image, answer: 'Classification | Detection | Segmentation') -> Image.Image:
    """Draw the likeliest classes, boxes with masks, or the class of every pixel into a copy of an RGB image."""
    if isinstance(answer, Segmentation):
        colours = numpy.array([_colour(i) for i in range(int(answer.mask.max()) + 1)], numpy.uint8)
        return Image.blend(image, Image.fromarray(colours[answer.mask]), 0.5)
    if isinstance(answer, Detection) and answer.masks is not None:
        for label, mask in zip(answer.labels, answer.masks):
            plain = Image.new('RGB', image.size, _colour(label))
            image = Image.composite(Image.blend(image, plain, 0.5), image, Image.fromarray(mask))
    image = image.copy()
    pen = ImageDraw.Draw(image)
    rows = [f'{name} {score:.2f}' for name, score in zip(answer.names, answer.scores)]
    if isinstance(answer, Classification):
        _write(pen, (0, 0), '\n'.join(rows), (0, 0, 0))
    else:
        for text, label, box in reversed(list(zip(rows, answer.labels, answer.boxes.tolist()))):
            pen.rectangle(box, outline=_colour(label), width=max(1, max(image.size) // 250))
            _write(pen, (box[0], box[1]), text, _colour(label))
    return image


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    text = text.encode('latin-1', 'replace').decode('latin-1')
    pen.rectangle(pen.multiline_textbbox(place, text), fill=colour)
    pen.multiline_text(place, text, fill='white')


def _colour(label: int) -> tuple[int, int, int]:
    """A dark colour of each class, far from those of the next ones."""
    red, green, blue = colorsys.hsv_to_rgb(int(label) * 0.618 % 1, 0.9, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)

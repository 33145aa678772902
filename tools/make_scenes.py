"""Writes a small detection data set in COCO format: scenes composed of Fashion-MNIST images.

``make_scenes.py data/fashion_scenes`` reads what ``prepare_fashion_mnist.py`` laid in ``data/fashion_mnist``. Training
scenes take their objects from the training images, validation scenes from the test images. A box is the extent of the
pixels that were pasted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Optional

import cv2
import numpy

from cnv2_plugin.checkpoints import atomic_path

CLASSES = {0: 'T-shirt', 1: 'Trouser', 7: 'Sneaker', 8: 'Bag', 9: 'Ankle boot'}
VISIBLE = 40
"""Grey value from which a pasted pixel belongs to its object."""

Box = tuple[int, int, int, int]


def read_images(folder: Path, prefix: str) -> dict[int, numpy.ndarray]:
    """Images ``(N, 28, 28)`` of each class in use, from IDX files.

    Raises:
        FileNotFoundError: the files are missing.
    """
    paths = [folder / f'{prefix}-images-idx3-ubyte', folder / f'{prefix}-labels-idx1-ubyte']
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'{missing[0]} is missing; lay it with tools/prepare_fashion_mnist.py {folder}.')
    images = numpy.frombuffer(paths[0].read_bytes(), numpy.uint8, offset=16).reshape(-1, 28, 28)
    labels = numpy.frombuffer(paths[1].read_bytes(), numpy.uint8, offset=8)
    return {label: images[labels == label] for label in CLASSES}


def background(size: int, rng: numpy.random.Generator) -> numpy.ndarray:
    """A dark, coloured, uneven ground ``(size, size, 3)``."""
    coarse = rng.uniform(0, 70, (4, 4, 3)).astype(numpy.float32)
    ground = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return ground + rng.normal(0, 6, ground.shape).astype(numpy.float32)


def compose(
    images: dict[int, numpy.ndarray], size: int, rng: numpy.random.Generator
) -> tuple[numpy.ndarray, list[tuple[int, Box]]]:
    """One scene.

    Args:
        images: images by class.
        size: height and width of the scene, at least 64.
        rng: source of every choice.

    Returns:
        The scene ``(size, size, 3)``, and the class and box ``(x, y, w, h)`` of each object.
    """
    scene = background(size, rng)
    objects: list[tuple[int, Box]] = []
    for _ in range(rng.integers(2, 6)):
        label = int(rng.choice(list(images)))
        side = int(rng.integers(28, 57))
        sprite = cv2.resize(images[label][rng.integers(len(images[label]))], (side, side))
        rows, columns = numpy.nonzero(sprite >= VISIBLE)
        if not len(rows):
            continue
        top, left = rng.integers(0, size - side + 1, 2)
        box = (
            int(left + columns.min()), int(top + rows.min()),
            int(columns.max() - columns.min() + 1), int(rows.max() - rows.min() + 1),
        )  # fmt: skip
        if any(overlap(box, other) > 0.2 for _, other in objects):
            continue
        colour = rng.uniform(0.5, 1.0, 3)
        region = scene[top : top + side, left : left + side]
        pasted = sprite[..., None] >= VISIBLE
        numpy.copyto(region, (sprite[..., None] * colour).astype(numpy.float32), where=pasted)
        objects.append((label, box))
    return scene.clip(0, 255).astype(numpy.uint8), objects


def overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller area."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / min(a[2] * a[3], b[2] * b[3])


def write_split(
    target: Path, name: str, images: dict[int, numpy.ndarray], count: int, size: int, rng: numpy.random.Generator
) -> int:
    """Write the scenes of one split and their annotations.

    Returns:
        The number of objects.
    """
    categories = {label: i for i, label in enumerate(CLASSES)}
    records, annotations = [], []
    (target / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene, objects = compose(images, size, rng)
        file_name = f'{i:05d}.png'
        with atomic_path(target / name / file_name) as temporary:
            temporary.write_bytes(cv2.imencode('.png', scene)[1].tobytes())
        records.append(dict(id=i, file_name=file_name, width=size, height=size))
        for label, box in objects:
            annotations.append(
                dict(id=len(annotations) + 1, image_id=i, category_id=categories[label], bbox=list(box),
                     area=box[2] * box[3], iscrowd=0)
            )  # fmt: skip
    named = [dict(id=i, name=CLASSES[label]) for label, i in categories.items()]
    (target / 'annotations').mkdir(exist_ok=True)
    with atomic_path(target / 'annotations' / f'{name}.json') as temporary:
        temporary.write_text(json.dumps(dict(images=records, annotations=annotations, categories=named)))
    return len(annotations)


def main(argv: Optional[list[str]] = None) -> int:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', type=Path, help='folder to write, such as data/fashion_scenes')
    parser.add_argument('--source', type=Path, default=Path('data/fashion_mnist'), help='folder with the IDX files')
    parser.add_argument('--train', type=int, default=400, help='training scenes')
    parser.add_argument('--val', type=int, default=100, help='validation scenes')
    parser.add_argument('--size', type=int, default=160, help='height and width')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    if args.size < 64 or min(args.train, args.val) < 1:
        parser.error('--size takes at least 64, --train and --val at least 1')
    try:
        for i, (name, prefix, count) in enumerate((('train', 'train', args.train), ('val', 't10k', args.val))):
            rng = numpy.random.default_rng([args.seed, i])
            objects = write_split(args.target, name, read_images(args.source, prefix), count, args.size, rng)
            print(f'{name}: {count} scenes, {objects} objects')
    except OSError as error:
        print(f'make_scenes: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())

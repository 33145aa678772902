"""Generates scenes of garments in which a pair touches: ``make_touching_pairs.py scenes.npz --count 1000``.

Every scene shows three garments of three classes of Fashion-MNIST, of any scale and colour, on cluttered ground. Two of
them touch, one partly behind the other; the third stands apart. The label is the pair, of 45, or of fewer where
``--kinds`` names fewer classes: it takes all three garments and where they are, and no garment alone decides. Scene
``i`` depends on the seed and ``i`` only.
"""

import argparse
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from cnv2_plugin.checkpoints import atomic_path

KINDS = range(10)
"""Classes of Fashion-MNIST."""

VISIBLE = 40
"""Grey value from which a pixel belongs to its garment."""

SCALES = (32, 40)
"""Least and greatest side of a garment of the pair, in pixels."""

THIRD = (14, 18)
"""Least and greatest side of the third garment."""

TOUCHING = 0.01
"""Share of the smaller garment's pixels that the other one's cover, at least."""

APART = 2
"""Pixels between the third garment and the two, at least."""

CLUTTER = 2
"""Shapes behind the garments, at most."""

SETTINGS = dict(visible=VISIBLE, scales=SCALES, third=THIRD, touching=TOUCHING, apart=APART, clutter=CLUTTER)
"""What tells these scenes from others."""

Garments = dict[int, np.ndarray]


def pairs(kinds: Iterable[int] = KINDS) -> list[tuple[int, int]]:
    """The classes of the scenes: every two kinds of garments, the smaller number first."""
    return list(combinations(sorted(kinds), 2))


def read_garments(folder: Path, prefix: str, kinds: Iterable[int] = KINDS) -> Garments:
    """Images ``(N, 28, 28)`` of each class, from IDX files.

    Args:
        folder: that ``tools/prepare_fashion_mnist.py`` filled.
        prefix: ``'train'`` or ``'t10k'``.
        kinds: classes to read.

    Raises:
        FileNotFoundError: a file is missing.
    """
    paths = [folder / f'{prefix}-{kind}-ubyte' for kind in ('images-idx3', 'labels-idx1')]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise FileNotFoundError(f'{missing} is missing; lay it with tools/prepare_fashion_mnist.py {folder}.')
    images = np.frombuffer(paths[0].read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(paths[1].read_bytes(), np.uint8, offset=8)
    return {label: images[labels == label] for label in sorted(kinds)}


def scenes(garments: Garments, count: int, seed: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Generate scenes and their labels.

    Args:
        garments: images by class, of three classes or more; the scenes show these and no others.
        count: number of scenes.
        seed: of every choice.
        size: height and width, at least 64.

    Returns:
        uint8 ``(count, 3, size, size)``, and the index of each in :func:`pairs` of the garments' classes, int64.
    """
    pixels, labels = np.empty((count, 3, size, size), np.uint8), np.empty(count, np.int64)
    classes = pairs(garments)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        scene = None
        while scene is None:
            labels[i] = rng.integers(len(classes))
            scene = compose(garments, classes[labels[i]], size, rng)
        pixels[i] = scene.transpose(2, 0, 1)
    return pixels, labels


def compose(garments: Garments, pair: tuple[int, int], size: int, rng: np.random.Generator) -> Optional[np.ndarray]:
    """One scene ``(size, size, 3)`` in which the pair touches; None where no room was found for it."""
    third = rng.choice([label for label in sorted(garments) if label not in pair])
    drawn = [_drawn(garments[label], SCALES, rng) for label in rng.permutation(pair)]
    drawn.append(_drawn(garments[third], THIRD, rng))
    first = _somewhere(drawn[0], size, rng)
    second = _touching(first > VISIBLE, drawn[1], size, rng)
    if second is None:
        return None
    apart = _apart((first > VISIBLE) | (second > VISIBLE), drawn[2], size, rng)
    if apart is None:
        return None
    scene = _ground(size, rng)
    for layer in (first, second, apart):
        tint = rng.uniform(0.35, 1, 3)
        opacity = np.clip(layer / VISIBLE - 0.5, 0, 1)[..., None]
        scene = scene * (1 - opacity) + layer[..., None] * tint * opacity
    return np.clip(scene + rng.normal(0, 5, scene.shape), 0, 255).astype(np.uint8)


def _drawn(images: np.ndarray, scales: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A garment in its size, mirrored or not."""
    image = images[rng.integers(len(images))]
    side = int(rng.integers(scales[0], scales[1] + 1))
    resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return resized[:, ::-1] if rng.random() < 0.5 else resized


def _placed(garment: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    layer, side = np.zeros((size, size), np.float32), len(garment)
    layer[top : top + side, left : left + side] = garment
    return layer


def _somewhere(garment: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, size - len(garment) + 1, 2)
    return _placed(garment, top, left, size)


def _touching(other: np.ndarray, garment: np.ndarray, size: int, rng: np.random.Generator) -> Optional[np.ndarray]:
    """The garment, moved towards another one from a random side until they touch."""
    angle, room = rng.uniform(0, 2 * np.pi), size - len(garment)
    centre = np.argwhere(other).mean(0) - len(garment) / 2
    needed = TOUCHING * min(other.sum(), (garment > VISIBLE).sum())
    for distance in range(32, -1, -1):
        top, left = np.round(centre + distance * np.array([np.sin(angle), np.cos(angle)])).astype(int)
        if not (0 <= top <= room and 0 <= left <= room):
            continue
        layer = _placed(garment, top, left, size)
        if (other & (layer > VISIBLE)).sum() >= needed:
            return layer
    return None


def _apart(others: np.ndarray, garment: np.ndarray, size: int, rng: np.random.Generator) -> Optional[np.ndarray]:
    """The garment where it touches none of the others."""
    near = others.copy()
    for _ in range(APART):
        grown = np.pad(near, 1)
        near = near | grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
    for _ in range(40):
        layer = _somewhere(garment, size, rng)
        if not (near & (layer > VISIBLE)).any():
            return layer
    return None


def _ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Dark, coloured, uneven ground with a few shapes on it."""
    coarse = Image.fromarray(rng.integers(0, 70, (4, 4, 3)).astype(np.uint8))
    ground = coarse.resize((size, size), Image.Resampling.BICUBIC)
    pencil = ImageDraw.Draw(ground)
    for _ in range(rng.integers(0, CLUTTER + 1)):
        ends = [int(value) for value in rng.integers(0, size, 4)]
        colour = tuple(int(value) for value in rng.integers(30, 160, 3))
        if rng.random() < 0.5:
            pencil.line(ends, fill=colour, width=int(rng.integers(1, 4)))
        else:
            radius = int(rng.integers(2, 7))
            pencil.ellipse((ends[0], ends[1], ends[0] + radius, ends[1] + radius), fill=colour)
    return np.asarray(ground, np.float32)


def main(argv: Optional[list[str]] = None) -> int:
    """Write one file with ``images`` and ``labels``."""
    parser = argparse.ArgumentParser(description='Generates scenes of garments in which a pair touches.')
    parser.add_argument('out', type=Path, help='.npz file to write')
    parser.add_argument('--count', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--part', choices=['train', 't10k'], default='train', help='whose garments (default: train)')
    parser.add_argument('--kinds', nargs='+', type=int, choices=KINDS, default=list(KINDS),
                        help='classes of Fashion-MNIST to show, three or more (default: all)')  # fmt: skip
    parser.add_argument('--fashion-mnist', type=Path, default=Path('data/fashion_mnist'),
                        help='folder that tools/prepare_fashion_mnist.py filled')  # fmt: skip
    args = parser.parse_args(argv)
    if len(set(args.kinds)) < 3:
        parser.error('--kinds takes three classes or more, since every scene shows three.')
    try:
        images, labels = scenes(read_garments(args.fashion_mnist, args.part, set(args.kinds)), args.count, args.seed)
    except FileNotFoundError as error:
        print(f'make_touching_pairs: {error}', file=sys.stderr)
        return 1
    with atomic_path(args.out) as temporary, open(temporary, 'wb') as file:
        np.savez(file, images=images, labels=labels)
    print(f'{args.count} scenes of {len(pairs(set(args.kinds)))} classes: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

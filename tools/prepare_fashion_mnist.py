"""Lays Fashion-MNIST where mmpretrain's ``FashionMNIST`` class looks: ``prepare_fashion_mnist.py data/fashion_mnist``.

The files come from a folder that holds them (Debian's package ``dataset-fashion-mnist`` by default). Where there is
none, ``--digits`` writes scikit-learn's handwritten digits in the same form, as a stand-in with other classes.
"""

import argparse
import gzip
import struct
import sys
from pathlib import Path
from typing import Optional

import numpy

from cnv2_plugin.checkpoints import atomic_path

DEBIAN = Path('/usr/share/datasets/fashion-mnist')
FILES = {
    'train-images-idx3-ubyte': 60000,
    'train-labels-idx1-ubyte': 60000,
    't10k-images-idx3-ubyte': 10000,
    't10k-labels-idx1-ubyte': 10000,
}
IMAGE_MAGIC, LABEL_MAGIC = 0x803, 0x801


def unpack(source: Path, target: Path) -> None:
    """Unpack the four IDX files into ``target``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what its name says.
    """
    missing = [name for name in FILES if not (source / f'{name}.gz').is_file()]
    if missing:
        raise FileNotFoundError(
            f'{source} lacks {missing[0]}.gz; install the Debian package dataset-fashion-mnist, name the folder that '
            f'holds the files with --source, or use --digits.'
        )
    for name, count in FILES.items():
        data = gzip.decompress((source / f'{name}.gz').read_bytes())
        magic = IMAGE_MAGIC if 'images' in name else LABEL_MAGIC
        size = 16 + count * 28 * 28 if 'images' in name else 8 + count
        if len(data) != size or struct.unpack('>II', data[:8]) != (magic, count):
            raise ValueError(f'{source / name}.gz is not the file of that name of Fashion-MNIST; get it again.')
        write(target / name, data)


def write_digits(target: Path) -> None:
    """Write scikit-learn's 8x8 digits, enlarged to 28x28, in IDX form: 1437 to train and 360 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = numpy.kron(digits.images.round() * 15, numpy.ones((1, 3, 3))).astype(numpy.uint8)
    images = numpy.pad(images, ((0, 0), (2, 2), (2, 2)))
    order = numpy.random.default_rng(0).permutation(len(images))
    for prefix, chosen in (('train', order[360:]), ('t10k', order[:360])):
        header = struct.pack('>IIII', IMAGE_MAGIC, len(chosen), 28, 28)
        write(target / f'{prefix}-images-idx3-ubyte', header + images[chosen].tobytes())
        labels = digits.target[chosen].astype(numpy.uint8)
        write(target / f'{prefix}-labels-idx1-ubyte', struct.pack('>II', LABEL_MAGIC, len(chosen)) + labels.tobytes())


def write(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def main(argv: Optional[list[str]] = None) -> int:
    """Lay the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('target', type=Path, help='folder to write, such as data/fashion_mnist')
    parser.add_argument('--source', type=Path, default=DEBIAN, help='folder with the four .gz files')
    parser.add_argument('--digits', action='store_true', help="write scikit-learn's digits instead")
    args = parser.parse_args(argv)
    args.target.mkdir(parents=True, exist_ok=True)
    try:
        write_digits(args.target) if args.digits else unpack(args.source, args.target)
    except (OSError, ValueError) as error:
        print(f'prepare_fashion_mnist: {error}', file=sys.stderr)
        return 1
    except ModuleNotFoundError:
        print('prepare_fashion_mnist: --digits takes scikit-learn; run: pip install scikit-learn.', file=sys.stderr)
        return 1
    print(f'{"Digits" if args.digits else "Fashion-MNIST"} in {args.target}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

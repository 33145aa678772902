"""Small image sets, kept in memory as bytes, and batches of them whose augmentation runs on tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = 32
"""Height and width of every image."""

NAMES = ('digits', 'fashion-mnist')


@dataclass(frozen=True)
class Images:
    """Images with labels.

    Attributes:
        pixels: uint8, ``(N, 1, 32, 32)``.
        labels: int64, ``(N,)``.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: Optional[int]) -> 'Images':
        """The first ``count`` images; all of them where it is None or there are no more."""
        return Images(self.pixels[:count], self.labels[:count])


@dataclass(frozen=True)
class Data:
    """A training and a test set, and the statistics of the training pixels between 0 and 255."""

    train: Images
    test: Images
    mean: float
    std: float

    def normalised(self, pixels: Tensor) -> Tensor:
        """Float images ``(N, C, H, W)``, channels last, as a network takes them."""
        floats = pixels.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std)


def load(
    name: str, train_images: Optional[int] = None, test_images: Optional[int] = None, folder: Optional[Path] = None
) -> Data:
    """An image set by name, shortened to its first images.

    Args:
        name: one of :data:`NAMES`.
        train_images: at most so many to train on.
        test_images: at most so many to test on.
        folder: where ``tools/prepare_fashion_mnist.py`` laid Fashion-MNIST; ``data/fashion_mnist`` by default.

    Raises:
        ValueError: there is no such set.
        FileNotFoundError: its files are missing.
    """
    if name not in NAMES:
        raise ValueError(f'there is no image set {name!r}; there are {", ".join(NAMES)}.')
    parts = digits() if name == 'digits' else fashion_mnist(folder or Path('data/fashion_mnist'))
    train, test = (part.first(count) for part, count in zip(parts, (train_images, test_images)))
    pixels = train.pixels.float()
    return Data(train, test, pixels.mean().item(), pixels.std().item())


def digits() -> tuple[Images, Images]:
    """scikit-learn's digits, enlarged to 32x32: three quarters to train, one to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pixels = torch.from_numpy(found.images.astype(np.float32))[:, None] * (255 / 16)
    pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode='bilinear', align_corners=False).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    parts = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=found.target)
    return tuple(Images(pixels[part], labels[part]) for part in parts)


def fashion_mnist(folder: Path) -> tuple[Images, Images]:
    """Fashion-MNIST, padded to 32x32, in an order that depends on nothing.

    Raises:
        FileNotFoundError: a file is missing.
    """
    parts = []
    for prefix in ('train', 't10k'):
        paths = [folder / f'{prefix}-{kind}-ubyte' for kind in ('images-idx3', 'labels-idx1')]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing:
            raise FileNotFoundError(f'{missing} is missing; lay it with tools/prepare_fashion_mnist.py {folder}.')
        pixels = np.frombuffer(paths[0].read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(paths[1].read_bytes(), np.uint8, offset=8)
        order = np.random.default_rng(0).permutation(len(labels))
        padded = np.pad(pixels[order], ((0, 0), (0, 0), (2, 2), (2, 2)))
        parts.append(Images(torch.from_numpy(padded), torch.from_numpy(labels[order].astype(np.int64))))
    return tuple(parts)


def batches(
    data: Data, batch_size: int, shift: int, flip: bool, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the training images in random order, each image shifted and perhaps mirrored by itself.

    Args:
        data: the images.
        batch_size: images a batch; what does not fill one is left out.
        shift: pixels that an image moves at most, in both directions.
        flip: mirror every other image, on average.
        generator: decides order, shifts and flips.

    Raises:
        ValueError: there are fewer images than a batch takes.
    """
    train = data.train
    if len(train) < batch_size:
        raise ValueError(f'{len(train)} training images do not fill a batch of {batch_size}; give more of them.')
    order = torch.randperm(len(train), generator=generator)
    for chosen in order[: len(order) // batch_size * batch_size].split(batch_size):
        pixels = augmented(train.pixels[chosen], shift, flip, generator)
        yield data.normalised(pixels), train.labels[chosen]


def augmented(pixels: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images ``(N, C, H, W)`` padded with 0, cropped at random, and mirrored where ``flip`` says so and chance too."""
    count, _, height, width = pixels.shape
    if shift:
        padded = F.pad(pixels, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * shift + 1, (2, count), generator=generator)
        pixels = padded[torch.arange(count), :, down, right]
    if flip:
        mirrored = torch.randint(2, (count,), generator=generator).bool()
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    return pixels

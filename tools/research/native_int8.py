"""Accuracy in int8: small networks trained on Fashion-MNIST, in the native kernels in float32 and int8."""

import argparse
import gzip
import random
import sys
from pathlib import Path

import numpy as np
import timm
import torch

import cnv2_plugin  # noqa: F401  (registers the models with timm)
from cnv2_plugin.checkpoints import load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import export_onnx

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from quickstart import ARCH, INPUT_SIZE, accuracy, fit, predict  # noqa: E402

from tools.research.networks import NETWORKS  # noqa: E402

ARCHS = {'quickstart': ARCH} | {
    name: network.options for name, network in NETWORKS.items() if network.family == 'condensenetv2'
}


def main() -> None:
    """Train, where there is no checkpoint yet, write both files and print how many test images each gets right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True, help="folder of Fashion-MNIST's four idx-ubyte.gz files")
    parser.add_argument(
        '--networks', nargs='+', choices=ARCHS, default=['condensenetv2-s', 'condensenetv2-l'], metavar='NAME',
        help=f'among {", ".join(ARCHS)}',
    )  # fmt: skip
    parser.add_argument('--images', type=int, default=6000, help='training images')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--calibration', type=int, default=256, help='training images that ranges are taken from')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/native_int8'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, test = read(args.data, 'train', args.images), read(args.data, 't10k')
    for name in args.networks:
        random.seed(0)
        torch.manual_seed(0)
        kwargs = dict(arch=ARCHS[name], in_chans=1, num_classes=10)
        model = timm.create_model('condensenetv2', **kwargs)
        checkpoint = args.out / f'{name}.pth'
        if checkpoint.exists():
            model.load_state_dict(load_checkpoint(checkpoint)['state_dict'])
        else:
            fit(model, train, tuple(part[:500] for part in test), args.epochs, 64)
            save_checkpoint(model.state_dict(), checkpoint, dict(arch='condensenetv2', model_kwargs=kwargs))
        model.eval()
        for kind, options in (('float32', {}), ('int8', dict(int8=train[0][: args.calibration].split(1)))):
            file = args.out / f'{name}.{kind}.onnx'
            size = export_onnx(model, file, INPUT_SIZE, native=True, **options).size
            right = accuracy(predict(file, test[0]), test[1])
            print(f'{name} in {kind}: {right:.2f} % of {len(test[1]):,} images, {size / 1e3:.0f} kB', flush=True)


def read(folder: Path, part: str, count: int = 10000) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images, padded to 32x32 and normalised, and their labels."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f'{part}-{kind}-ubyte.gz').read_bytes()), np.uint8)
        for kind in ('images-idx3', 'labels-idx1')
    )
    images = torch.from_numpy(pixels[16:].copy()).view(-1, 1, 28, 28)[:count].float() / 255
    images = torch.nn.functional.pad((images - 0.286) / 0.353, (2, 2, 2, 2), value=-0.286 / 0.353)
    return images, torch.from_numpy(labels[8:].copy())[:count].long()


if __name__ == '__main__':
    main()

"""Writes one file over and over until it is killed: ``writer.py KIND PATH``."""

import sys

import timm
import torch

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.deploy import condense, export_onnx
from tests.faults.test_kill import ARCH
from tests.helpers import finish_pruning


def main(kind: str, path: str) -> None:
    """Say ``ready`` when the first file is there, then never stop."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = finish_pruning(timm.create_model('condensenetv2', arch=ARCH, num_classes=3)).eval()
    condensed = condense(model)
    while True:
        if kind == 'checkpoint':
            save_checkpoint(model.state_dict(), path, dict(deploy=False))
        elif kind == 'deployed':
            save_checkpoint(condense(model).state_dict(), path, dict(deploy=True))
        else:
            export_onnx(condensed, path, (3, 16, 16), batch=1, optimize=False)
        print('ready', flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])

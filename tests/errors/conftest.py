"""Files that are wrong in every way, made once."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.deploy import condense
from tests.helpers import finish_pruning

ARCH = dict(layers=[1, 1], growth=[8, 8], groups_1x1=4, groups_3x3=4, groups_sfr=4, condense_factor=3, sparse_factor=2)
KWARGS = dict(arch=ARCH, num_classes=4)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged_files(folder: Path, good: dict, marker: Path) -> None:
    """Write files that no reader may accept, and that must never run or allocate what they ask for."""
    save_checkpoint(good, folder / 'good.pth')
    whole = (folder / 'good.pth').read_bytes()
    (folder / 'empty.pth').write_bytes(b'')
    (folder / 'text.pth').write_bytes(b'<html>Sign in to download</html>')
    (folder / 'truncated.pth').write_bytes(whole[: len(whole) // 2])
    (folder / 'corrupt.pth').write_bytes(whole[:200] + bytes(255 - b for b in whole[200:1200]) + whole[1200:])
    (folder / 'truncated.safetensors').write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"w"')
    (folder / 'huge_header.safetensors').write_bytes((10**12).to_bytes(8, 'little') + b'{}')
    (folder / 'raw_payload.pth').write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with zipfile.ZipFile(folder / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('bomb/data.pkl', b'\x80\x02}.')
        archive.writestr('bomb/data/0', bytes(1_000_000))
        archive.writestr('bomb/version', b'3\n')
    (folder / 'config.py').write_text(f'import os\nos.mkdir({str(marker)!r})\n')
    torch.save([torch.zeros(1)], folder / 'list.pth')
    torch.save(dict(epoch=3, optimizer={}), folder / 'no_tensors.pth')
    torch.save(dict(state_dict=good, extra=Payload(marker)), folder / 'payload.pth')
    torch.save(dict(state_dict={**good, 'stem.weight': torch.zeros(1).expand(10**12)}), folder / 'expanded.pth')
    torch.save(dict(state_dict={**good, 'stem.weight': torch.empty(10**12, device='meta')}), folder / 'meta.pth')
    torch.save({'w': torch.zeros(5, 5)}, folder / 'announced.pth', _use_new_zipfile_serialization=False)
    old = (folder / 'announced.pth').read_bytes()
    claimed = b'\x8a\x06' + (10**12).to_bytes(6, 'little')
    (folder / 'announced.pth').write_bytes(old.replace(b'K\x19', claimed, 1))


_NAMED = (
    'empty.pth', 'text.pth', 'truncated.pth', 'corrupt.pth', 'truncated.safetensors', 'huge_header.safetensors',
    'raw_payload.pth', 'bomb.pth', 'payload.pth', 'expanded.pth', 'meta.pth', 'announced.pth', 'config.py',
)  # fmt: skip
DAMAGED = {
    **{name: (name,) for name in _NAMED},
    'list.pth': ('list.pth', 'list', 'dict'),
    'no_tensors.pth': ('tensors', 'epoch', 'state_dict'),
}
"""What a reader's sentence about each file names."""


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wrong')
    torch.manual_seed(0)
    half = timm.create_model('condensenetv2', **KWARGS)
    meta = dict(arch='condensenetv2', model_kwargs=KWARGS)
    save_checkpoint(half.state_dict(), folder / 'half.pth')
    save_checkpoint(half.state_dict(), folder / 'half_named.pth', meta)
    model = finish_pruning(half).eval()
    damaged_files(folder, model.state_dict(), folder / 'executed')
    save_checkpoint(model.state_dict(), folder / 'named.pth', meta)
    diverged = {**model.state_dict(), 'stem.weight': torch.full_like(model.state_dict()['stem.weight'], torch.nan)}
    save_checkpoint(diverged, folder / 'nan.pth', meta)
    save_checkpoint(condense(model).state_dict(), folder / 'condensed.pth', meta)
    save_checkpoint({'conv1.weight': torch.zeros(64, 3, 7, 7)}, folder / 'resnet.pth')
    giant = dict(arch='condensenetv2', model_kwargs=dict(arch=dict(ARCH, layers=[10**12, 1])))
    save_checkpoint(model.state_dict(), folder / 'giant.pth', giant)
    wide = dict(arch='condensenetv2', model_kwargs=dict(arch=dict(ARCH, growth=[10**12, 8])))
    save_checkpoint(model.state_dict(), folder / 'wide.pth', wide)
    official = {'features.init_conv.weight': torch.zeros(16, 3, 3, 3)}
    save_checkpoint(official, folder / 'half_official.pth')
    (folder / 'broken.py').write_text('model = dict(\n')
    (folder / 'no_model.py').write_text('x = 1\n')
    (folder / 'unscaled.py').write_text('model = dict()\ntrain_dataloader = dict()\noptim_wrapper = dict()\n')
    for name in ('no_images', 'bad_images', 'one_image'):
        (folder / name).mkdir()
    (folder / 'bad_images/a.png').write_text('hello\n')
    Image.new('RGB', (8, 8)).save(folder / 'one_image/a.png')
    (folder / 'text.csv').write_text('hello\n')
    return folder

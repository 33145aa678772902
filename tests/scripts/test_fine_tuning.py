"""The page on fine-tuning: from a released file to five classes in one command, in timm's way and in MMPretrain."""

from pathlib import Path

import pytest
import torch

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint
from cnv2_plugin.cli import main
from tests.docs.blocks import ROOT
from tests.reference import official
from tests.scripts.test_run import pictures, stages

LINES = [line for line in (ROOT / 'docs/fine-tuning.md').read_text().splitlines() if line.startswith('cnv2 ')]


def command(start, *more, **other):
    """Run the line of the page that starts so, with words in place of others and more behind it."""
    (line,) = (line for line in LINES if line.startswith(f'cnv2 {start}'))
    words = [str(other.get(word.replace('.', '_'), word)) for word in line.split()]
    try:
        code = main([*words[1:], *map(str, more)])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (0, None)


def released(name):
    """The state dict of a released file's import, which the page calls ``released.pth``."""
    state = official.random_state_dict(official.NETS[name], None, torch.Generator().manual_seed(0))
    torch.save(dict(state_dict=state), 'FILE')
    command('import-official')
    return load_checkpoint('released.pth')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / 'my_images', classes=5, train=4, val=1, size=32)


def check_masks(trained, start):
    """Masks are those of the start, pruned weights are still zero and the others were trained."""
    masks = [key for key in start if key.endswith('.mask')]
    assert masks and all(torch.equal(trained[key], start[key]) for key in masks)
    weight = masks[0].replace('.mask', '.conv.weight')
    assert not torch.equal(trained[weight], start[weight])


@pytest.mark.slow
def test_timm_s_way_from_a_released_file_to_five_classes():
    """The stand-in takes the options of timm's own script that the line has; that one itself was run by hand."""
    start = find_state_dict(released('110-cifar'))
    script = Path(__file__).with_name('timm_training.py')
    smaller = dict(train_py=script, my_images='out', condensenetv2_a='condensenetv2_110_cifar')
    command('run train.py', '--data-dir', 'my_images', '--input-size', 3, 32, 32, '--epochs', 1, **smaller)
    trained = find_state_dict(load_checkpoint('out/last.pth.tar'))
    assert stages(trained) == stages(start) and trained['classifier.weight'].shape[0] == 5
    check_masks(trained, start)


@pytest.mark.slow
@pytest.mark.needs('mmpretrain')
def test_mmpretrain_from_a_released_file_to_five_classes():
    released('a')
    command('convert-keys released.pth start.pth')
    start = load_checkpoint('start.pth')
    command(
        'train', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=4',
        'default_hooks.checkpoint.interval=1', 'param_scheduler.1.T_max=2', 'param_scheduler.1.end=2',
        *(f'{part}_dataloader.num_workers=0' for part in ('train', 'val')),
        *(f'{part}_dataloader.persistent_workers=False' for part in ('train', 'val')),
    )  # fmt: skip
    trained = find_state_dict(load_checkpoint('work_dirs/classifier_condensenetv2-a_1xb64-60e/epoch_1.pth'))
    start = find_state_dict(start)
    assert stages(trained) == stages(start)
    assert trained.keys() == start.keys()
    shapes = {key for key in start if trained[key].shape != start[key].shape}
    assert shapes == {'head.layers.1.fc.weight', 'head.layers.1.fc.bias'}
    check_masks(trained, start)

"""timm's own scripts, unchanged, under ``cnv2 run`` as in docs/scripts.md; CNV2_TIMM_SCRIPTS names their folder."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint
from tests.scripts.test_run import pictures, run_apart, stages

SCRIPTS = Path(os.environ.get('CNV2_TIMM_SCRIPTS') or 'nowhere')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SCRIPTS.is_dir(), reason="CNV2_TIMM_SCRIPTS names no folder with the scripts of timm's repository"
    ),
]
MODEL = ['--model', 'condensenet_50_cifar', '--num-classes', '10']
IMAGES = ['--input-size', '3', '16', '16', '--workers', '0', '--mean', '0', '0', '0', '--std', '1', '1', '1']
TRAINING = [
    *MODEL, *IMAGES, '--batch-size', '32', '--lr', '0.05', '--sched', 'cosine', '--warmup-epochs', '0', '--model-ema',
    '--model-ema-decay', '0.9', '--scale', '0.8', '1.0', '--hflip', '0', '--device', 'cpu', '--epochs', '4',
]  # fmt: skip
EVALUATION = [*MODEL, *IMAGES, '--crop-pct', '1', '--batch-size', '16', '--device', 'cpu']


def script(name, *arguments, options=()):
    """Run one of the scripts to its end; returns what it printed to stdout and stderr."""
    result = run_apart(*options, SCRIPTS.resolve() / name, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout, result.stderr


def train(data, folder, *arguments):
    sparsified = ['--sparse-fraction', '0.5', '--steps-per-epoch', '5']
    return script('train.py', data, *TRAINING, '--output', folder, *arguments, options=sparsified)[1]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp('data'), classes=10, train=16, val=4)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """The folder of a sparsified training with averaged weights, and what the script told."""
    folder = tmp_path_factory.mktemp('out')
    return folder / 'whole', train(data, folder, '--experiment', 'whole')


def weights(path):
    """Raw and averaged weights of a training that has finished pruning; the masks are the same in both."""
    checkpoint = load_checkpoint(path)
    raw, averaged = (find_state_dict(checkpoint, use_ema=use) for use in (False, True))
    assert stages(raw) == stages(averaged) == {3}
    assert all(torch.equal(raw[key], averaged[key]) for key in raw if key.endswith('mask'))
    return raw, averaged


def test_train_py_is_sparsified_and_resumed(data, trained):
    folder, told = trained
    assert 'cnv2 run: after 0 of 20 steps: stage 0 of 3, 100.0% of the prunable weights kept' in told
    assert 'cnv2 run: after 10 of 20 steps: stage 3 of 3' in told
    raw, averaged = weights(folder / 'last.pth.tar')
    assert not torch.equal(raw['classifier.weight'], averaged['classifier.weight'])
    first = find_state_dict(load_checkpoint(folder / 'checkpoint-0.pth.tar'))
    assert stages(first) == {1}
    again = ['--experiment', 'resumed', '--resume', folder / 'checkpoint-0.pth.tar']
    told = train(data, folder.parent, *again)
    assert 'cnv2 run: after 5 of 20 steps: stage 1 of 3' in told and 'after 10 of 20 steps: stage 3 of 3' in told
    resumed, _ = weights(folder.parent / 'resumed/last.pth.tar')
    pruned = [key for key in first if key.endswith('mask')]
    assert not any((resumed[key] > first[key]).any() for key in pruned)


@pytest.mark.parametrize('use_ema', [True, False])
def test_validate_py_gives_the_accuracy_of_the_checkpoint(use_ema, data, trained):
    checkpoint = trained[0] / 'last.pth.tar'
    arguments = ['--split', 'val', *EVALUATION, '--checkpoint', checkpoint, *(['--use-ema'] if use_ema else [])]
    printed, _ = script('validate.py', data, *arguments)
    result = json.loads(printed.split('--result')[1])
    if use_ema:
        with open(trained[0] / 'summary.csv') as summary:
            last = list(csv.DictReader(summary))[-1]
        assert result['top1'] == pytest.approx(float(last['eval_top1']), abs=1e-3)
    images, targets = tensors(data)
    right = (outputs(weights(checkpoint)[use_ema], images).argmax(1) == targets).float().mean()
    assert result['top1'] == pytest.approx(100 * right.item(), abs=1e-3)


def test_inference_py_writes_what_the_model_gives(data, trained, tmp_path):
    pytest.importorskip('pandas')
    checkpoint = trained[0] / 'last.pth.tar'
    arguments = ['--checkpoint', checkpoint, '--results-dir', tmp_path, '--topk', '10', '--label-type', 'none']
    arguments += ['--include-index', '--results-format', 'json', '--fullname', '--output-type', 'logit']
    script('inference.py', data, '--split', 'val', *EVALUATION, *arguments)
    (written,) = tmp_path.glob('*.json')
    rows = json.loads(written.read_text())
    assert len(rows) == 40
    images, _ = tensors(data)
    expected = outputs(find_state_dict(load_checkpoint(checkpoint), use_ema=True), images)
    for logits, row in zip(expected, (rows[name] for name in sorted(rows))):
        assert logits[row['index']].tolist() == pytest.approx(row['logit'], abs=1e-4)


def test_benchmark_py_counts_the_parameters():
    arguments = ['--input-size', '3', '64', '64', '--batch-size', '4', '--bench', 'inference', '--num-warm-iter', '1']
    arguments += ['--num-bench-iter', '5', '--device', 'cpu', '--no-retry']
    printed, _ = script('benchmark.py', '--model', 'condensenetv2_a', *arguments)
    result = json.loads(printed.split('--result')[1])
    parameters = sum(p.numel() for p in timm.create_model('condensenetv2_a').parameters())
    assert result['param_count'] == pytest.approx(parameters / 1e6, abs=0.01)
    assert result['infer_samples_per_sec'] > 0


@pytest.mark.needs('onnx', 'onnxruntime')
def test_onnx_export_py_writes_what_the_model_gives(data, trained, tmp_path):
    import onnxruntime

    checkpoint, out = trained[0] / 'last.pth.tar', tmp_path / 'c50.onnx'
    script('onnx_export.py', out, *MODEL, '--img-size', '16', '--checkpoint', checkpoint)
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    images, _ = tensors(data)
    name = session.get_inputs()[0].name
    (given,) = session.run(None, {name: images[:1].numpy()})
    expected = outputs(find_state_dict(load_checkpoint(checkpoint), use_ema=True), images[:1])
    assert np.allclose(given, expected.numpy(), atol=1e-4)


def tensors(data):
    """The validation pictures in the order of their names, as the scripts give them to the model, and their classes."""
    paths = sorted((data / 'val').rglob('*.png'))
    images = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2)
    classes = torch.tensor([int(re.sub(r'\D', '', path.parent.name)) for path in paths])
    return torch.from_numpy(images.astype(np.float32) / 255), classes


@torch.no_grad()
def outputs(state, images):
    model = timm.create_model('condensenet_50_cifar', num_classes=10).eval()
    model.load_state_dict(state)
    return model(images)

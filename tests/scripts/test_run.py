"""``cnv2 run``: scripts that know nothing of us, as python would run them, with and without sparsification."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from cnv2_plugin.checkpoints import find_state_dict, load_checkpoint
from cnv2_plugin.cli import main
from cnv2_plugin.commands.run import epochs_of
from tests.docs.blocks import ROOT
from tests.helpers import installed

SCRIPT = Path(__file__).with_name('timm_training.py')
EVALUATION = Path(__file__).with_name('timm_evaluation.py')
ARCH = dict(layers=[2, 1], growth=[8, 16], groups_1x1=4, groups_3x3=2, groups_sfr=8, condense_factor=3, sparse_factor=4)
AMP = pytest.param(
    ['--amp'], 42, marks=pytest.mark.skipif(installed('timm<=1.0.9'), reason='timm 1.0.9 scales on GPUs')
)
MODEL = ['--model-kwargs', json.dumps(dict(arch=ARCH))]


def run(*arguments):
    """Exit code of ``cnv2 run`` in this process."""
    try:
        return main(['run', *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code or 0


EPOCH = ['--steps-per-epoch', 7]


def run_apart(*arguments, **options):
    command = [sys.executable, '-m', 'cnv2_plugin.cli', 'run', *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **options)


def pictures(folder, classes, train, val, size=16):
    """``train`` and ``val`` with a folder of noisy pictures for each class, which differ in their brightness."""
    rng = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for kind in range(classes):
            (folder / split / f'c{kind}').mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 60, (size, size, 3)) + 195 * kind // classes
                Image.fromarray(image.astype(np.uint8)).save(folder / split / f'c{kind}/{index}.png')
    return folder


def stages(state_dict):
    return {int(value) for key, value in state_dict.items() if key.endswith('.stage')}


def test_the_training_is_sparsified_by_its_own_epochs(tmp_path, capsys):
    assert run('--sparse-fraction', 0.5, *EPOCH, SCRIPT, tmp_path, *MODEL, '--model-ema', '--epochs', 4) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith('cnv2 run')]
    assert told[0].startswith('cnv2 run: after 0 of 28 steps: stage 0 of 3, 100.0%')
    assert told[-1].startswith('cnv2 run: after 14 of 28 steps: stage 3 of 3') and len(told) <= 7
    checkpoint = load_checkpoint(tmp_path / 'last.pth.tar')
    raw, averaged = (find_state_dict(checkpoint, use_ema=use) for use in (False, True))
    assert stages(raw) == stages(averaged) == {2, 3}
    assert all(torch.equal(raw[key], averaged[key]) for key in raw if key.endswith('mask'))
    assert not torch.equal(raw['classifier.weight'], averaged['classifier.weight'])


@pytest.mark.parametrize('use_ema', [False, True])
def test_what_was_trained_is_validated_and_infers(use_ema, tmp_path, capsys):
    assert run('--sparse-fraction', 0.5, *EPOCH, SCRIPT, tmp_path, *MODEL, '--model-ema', '--epochs', 2) == 0
    data = pictures(tmp_path / 'data', classes=5, train=0, val=3, size=8)
    capsys.readouterr()
    arguments = [
        '--checkpoint',
        tmp_path / 'last.pth.tar',
        '--input-size',
        3,
        8,
        8,
        '--results',
        tmp_path / 'best.json',
    ]
    assert run(EVALUATION, data, *MODEL, *arguments, *(['--use-ema'] if use_ema else [])) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    model = timm.create_model('condensenetv2', arch=ARCH, num_classes=5).eval()
    model.load_state_dict(find_state_dict(load_checkpoint(tmp_path / 'last.pth.tar'), use_ema))
    names = [f'c{kind}/{index}.png' for kind in range(5) for index in range(3)]
    images = np.stack([np.asarray(Image.open(data / 'val' / name)) for name in names]).transpose(0, 3, 1, 2) / 255
    mean, std = (np.reshape(model.pretrained_cfg[key], (3, 1, 1)) for key in ('mean', 'std'))
    with torch.no_grad():
        best = model(torch.from_numpy((images - mean) / std).float()).max(1)
    found = json.loads((tmp_path / 'best.json').read_text())
    assert [Path(name).parts[-2] + '/' + Path(name).name for name in found] == names
    logits, classes = zip(*found.values())
    assert list(classes) == best.indices.tolist() and logits == pytest.approx(best.values.tolist(), abs=1e-4)
    assert told['top1'] == pytest.approx(100 * np.mean([best.indices[i] == i // 3 for i in range(15)]))


@pytest.mark.slow
@pytest.mark.parametrize('opt', ['sgd', 'lookahead_adamw'])
def test_resumed_it_ends_where_the_whole_training_ends(opt, tmp_path):
    options = ['--sparse-fraction', 0.6, '--start', 0.05, '--group-lasso', 1e-3, *EPOCH]
    arguments = [*MODEL, '--epochs', 4, '--model-ema', '--opt', opt]
    assert run(*options, SCRIPT, tmp_path / 'whole', *arguments) == 0
    assert run(*options, SCRIPT, tmp_path / 'part', *arguments, '--stop-after', 1) == 0
    half = tmp_path / 'part/last.pth.tar'
    assert max(stages(find_state_dict(load_checkpoint(half)))) in (1, 2)
    assert run(*options, SCRIPT, tmp_path / 'rest', *arguments, '--resume', half) == 0
    whole, rest = (load_checkpoint(tmp_path / name / 'last.pth.tar') for name in ('whole', 'rest'))
    for use in (False, True):
        ours, theirs = find_state_dict(rest, use), find_state_dict(whole, use)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_cut_short_says_so(tmp_path, capsys):
    assert run('--total-steps', 60, SCRIPT, tmp_path, *MODEL, '--epochs', 1) == 0
    assert 'ended after 7 of 60 steps, before the last stage' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('extra', 'steps'),
    [(['--grad-accum-steps', 3], 18), AMP, pytest.param(['--compile'], 42, marks=pytest.mark.slow)],
    ids=str,
)
def test_steps_are_those_of_the_optimiser(extra, steps, tmp_path, capsys):
    length = ['--epochs', 6, '--steps-per-epoch', steps // 6]
    assert run('--sparse-fraction', 0.5, *length, SCRIPT, tmp_path, *MODEL, '--epochs', 6, *extra) == 0
    assert f'after {steps // 2} of {steps} steps: stage 3 of 3' in capsys.readouterr().err


def test_without_options_a_script_is_only_run(tmp_path, capsys):
    assert run(SCRIPT, tmp_path, *MODEL, '--epochs', 1) == 0
    assert stages(find_state_dict(load_checkpoint(tmp_path / 'last.pth.tar'))) == {0}
    assert 'cnv2 run' not in capsys.readouterr().err
    assert sys.argv[0] != str(SCRIPT) and str(SCRIPT.parent) != sys.path[0]


@pytest.mark.parametrize(
    ('options', 'arguments', 'code', 'message'),
    [
        (['--sparse-fraction', 2], [], 2, 'sparse_fraction is 2'),
        (['--epochs', 0], [], 2, '--epochs is 0'),
        (['--group-lasso', -1], [], 2, '--group-lasso is -1'),
        (['--steps-per-epoch', 0], [], 2, '--steps-per-epoch is 0'),
        (['--sparse-fraction', 0.5], [], 2, 'name no --epochs; give --steps-per-epoch (and --epochs'),
        (['--sparse-fraction', 0.5], ['--epochs', '4'], 2, 'batch size x processes x accumulated batches'),
        (['--epochs', 4], [], 2, 'steps of an epoch are unknown; give --steps-per-epoch'),
        (['--total-steps', 9, '--epochs', 4], [], 2, 'without --epochs and --steps-per-epoch'),
        (['--total-steps', 5], MODEL, 1, 'leaves 2 steps for 3 pruning stages; train for at least 6 steps'),
        (['--total-steps', 9], ['--model', 'resnet10t', '--epochs', '1'], 1, 'so nothing was sparsified'),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(options, arguments, code, message, tmp_path, capsys):
    assert run(*options, SCRIPT, tmp_path, *arguments) == code
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


LOOP = (
    'optimizer = torch.optim.SGD(student.parameters(), 0.1)\n'
    'for _ in range(8):\n'
    '    student(torch.randn(2, 3, 8, 8)).mean().backward()\n'
    '    optimizer.step()\n'
)


def test_no_loader_is_needed_and_none_is_touched(tmp_path, capsys):
    script = tmp_path / 'endless.py'
    build = f'import torch, timm\nstudent = timm.create_model("condensenetv2", arch={ARCH!r})\n'
    script.write_text(build + LOOP)
    iterate = torch.utils.data.DataLoader.__iter__
    assert run('--total-steps', 8, script) == 0
    assert 'after 4 of 8 steps: stage 3 of 3' in capsys.readouterr().err
    assert torch.utils.data.DataLoader.__iter__ is iterate


@pytest.mark.parametrize(
    'build',
    [
        f'student = copy.deepcopy(timm.create_model("condensenetv2", arch={ARCH!r}))\n',
        f'student = pickle.loads(pickle.dumps(timm.create_model("condensenetv2", arch={ARCH!r})))\n',
    ],
    ids=['copied', 'unpickled'],
)
def test_a_model_that_is_not_built_piece_by_piece_is_found(build, tmp_path, capsys):
    script = tmp_path / 'copied.py'
    average = 'from timm.utils import ModelEmaV3\naverage = ModelEmaV3(student)\n'
    check = 'assert all(torch.equal(a, b) for (n, a), b in zip(student.named_buffers(), average.module.buffers()) '
    script.write_text(
        'import copy, pickle, timm, torch\n' + build + average + LOOP + check + 'if n.endswith("mask"))\n'
    )
    assert run('--total-steps', 8, script) == 0
    assert 'after 4 of 8 steps: stage 3 of 3' in capsys.readouterr().err


def test_a_fused_optimiser_that_holds_the_scale_of_the_gradients_is_taken(tmp_path, capsys):
    script = tmp_path / 'fused.py'
    script.write_text(
        'import torch, timm\n'
        f'model = timm.create_model("condensenetv2", arch={ARCH!r})\n'
        'optimizer = torch.optim.SGD(model.parameters(), 0.05, fused=True)\n'
        'scaler = torch.amp.GradScaler("cpu")\n'
        'for _ in range(8):\n'
        '    optimizer.zero_grad()\n'
        '    scaler.scale(model(torch.randn(2, 3, 8, 8)).square().mean()).backward()\n'
        '    scaler.step(optimizer)\n'
        '    scaler.update()\n'
    )
    assert run('--total-steps', 8, '--group-lasso', 1e-3, script) == 0
    assert 'after 4 of 8 steps: stage 3 of 3' in capsys.readouterr().err


def tiny(loop, before=''):
    """A script that trains with ``optimizer``; ``loss()`` is that of other images each time."""
    return (
        'import sys, torch, timm\n'
        f'model = timm.create_model("condensenetv2", arch={ARCH!r})\n'
        f'{before}'
        'optimizer = torch.optim.SGD(model.parameters(), 0.05)\n'
        'loss = lambda: model(torch.randn(2, 3, 8, 8)).square().mean()\n' + loop
    )


TWO_LOSSES = 'for _ in range(8):\n    loss().backward()\n    loss().backward()\n    optimizer.step()\n'
SAM = (
    'class Sam(torch.optim.Optimizer):\n'
    '    def __init__(self, parameters):\n'
    '        super().__init__(parameters, {})\n'
    '        self._base = torch.optim.SGD(self.param_groups, 0.05)\n'
    '    @torch.no_grad()\n'
    '    def move(self, by):\n'
    '        for p in self.param_groups[0]["params"]:\n'
    '            p.add_(p.grad, alpha=by) if p.grad is not None else None\n'
    'optimizer = Sam(model.parameters())\n'
    'for _ in range(8):\n'
    '    loss().backward()\n'
    '    optimizer.move(0.01)\n'
    '    loss().backward()\n'
    '    optimizer._base.step()\n'
    '    optimizer.zero_grad()\n'
)


@pytest.mark.parametrize('loop', [TWO_LOSSES, SAM], ids=['two losses', 'sam'])
def test_two_backward_passes_are_one_step(loop, tmp_path, capsys):
    script = tmp_path / 'two.py'
    script.write_text(tiny(loop))
    assert run('--total-steps', 8, script) == 0
    assert 'after 4 of 8 steps: stage 3 of 3' in capsys.readouterr().err


def test_a_resumed_script_with_more_epochs_takes_the_new_length(tmp_path, capsys):
    script = tmp_path / 'longer.py'
    script.write_text(
        tiny(
            'state, epochs, stop = sys.argv[1], int(sys.argv[3]), int(sys.argv[4])\n'
            'first = 0\n'
            'if len(sys.argv) > 5:\n'
            '    saved = torch.load(state)\n'
            '    model.load_state_dict(saved["model"])\n'
            '    optimizer.load_state_dict(saved["optimizer"])\n'
            '    first = saved["epoch"]\n'
            'for _ in range(4 * first, 4 * stop):\n'
            '    loss().backward()\n'
            '    optimizer.step()\n'
            'torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=stop), state)\n'
        )
    )
    state = tmp_path / 'state.pth'
    assert run('--steps-per-epoch', 4, script, state, '--epochs', 4, 1) == 0
    assert 'ended after 4 of 16 steps' in capsys.readouterr().err
    assert run('--steps-per-epoch', 4, script, state, '--epochs', 12, 12, '--resume') == 0
    told = capsys.readouterr().err.splitlines()
    assert 'after 4 of 48 steps' in told[0] and 'after 24 of 48 steps: stage 3 of 3' in told[-1]


def test_a_teacher_keeps_its_masks(tmp_path, capsys):
    script = tmp_path / 'distil.py'
    script.write_text(
        'import copy, torch, timm\n'
        f'student = timm.create_model("condensenetv2", arch={ARCH!r})\n'
        'teacher = copy.deepcopy(student).eval()\n'
        'optimizer = torch.optim.SGD(student.parameters(), 0.1)\n'
        'for _ in range(8):\n'
        '    x = torch.randn(2, 3, 8, 8)\n'
        '    (student(x) - teacher(x).detach()).square().mean().backward()\n'
        '    optimizer.step()\n'
        'assert all(m.all() for n, m in teacher.named_buffers() if n.endswith("mask"))\n'
        'assert not any(m.all() for n, m in student.named_buffers() if n.endswith("mask"))\n'
    )
    assert run('--total-steps', 8, script) == 0, capsys.readouterr().err


PROBE = (
    'import sys, json, timm, pickle\nclass Here: pass\npickle.dumps(Here())\nprint(json.dumps([sys.argv, sys.path[0], '
)
PROBE += '__name__, __file__, timm.is_model("condensenetv2_a")]))\nsys.exit(int(sys.argv[1]))\n'


def test_a_script_sees_what_python_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'probe.py').write_text(PROBE)
    assert run('probe.py', '3', '--help', '-m') == 3
    argv, path, name, file, ours = json.loads(capsys.readouterr().out)
    assert argv == ['probe.py', '3', '--help', '-m'] and ours
    assert Path(path) == tmp_path and name == '__main__' and Path(file).name == 'probe.py'


def test_a_module_sees_what_python_shows_it(tmp_path):
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package/__init__.py').write_text('')
    (tmp_path / 'package/probe.py').write_text(PROBE)
    result = run_apart('-m', 'package.probe', '0', cwd=tmp_path)
    argv, path, name, _, _ = json.loads(result.stdout)
    assert result.returncode == 0 and argv[1:] == ['0'] and Path(argv[0]) == tmp_path / 'package/probe.py'
    assert Path(path) == tmp_path and name == '__main__'


def test_an_error_of_the_script_has_its_own_traceback(tmp_path, capsys):
    (tmp_path / 'bad.py').write_text('def f():\n    raise ValueError("mine")\nf()\n')
    assert run(tmp_path / 'bad.py') == 1
    lines = [line.removeprefix('[rank0]: ') for line in capsys.readouterr().err.splitlines()]
    assert lines[0].startswith('Traceback') and 'bad.py", line 3' in lines[1] and lines[-1] == 'ValueError: mine'
    assert run(tmp_path / 'none.py') == 2
    assert 'there is no script' in capsys.readouterr().err


def test_epochs_are_read_from_command_lines():
    assert epochs_of(['x', '--epochs', '7', '--epochs=9']) == 9
    assert epochs_of(['--num_train_epochs', '3', '--epochs-warmup', '5']) == 3
    assert epochs_of(['--epochs', 'many']) is None and epochs_of([]) is None


@pytest.mark.slow
def test_two_processes_of_torchrun_prune_alike(tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    command += ['-m', 'cnv2_plugin.cli', 'run', '--steps-per-epoch', '4', str(SCRIPT), str(tmp_path), *MODEL]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    result = subprocess.run(
        [*command, '--epochs', '4', '--distributed', '--model-ema'],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count('of 16 steps: stage 3 of 3') == 1
    assert stages(find_state_dict(load_checkpoint(tmp_path / 'last.pth.tar'))) == {2, 3}

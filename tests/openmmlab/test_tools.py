"""``cnv2 train``, ``cnv2 test`` and ``cnv2 deploy CONFIG CHECKPOINT`` as they are typed, on real files."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from mmengine.config import Config

from cnv2_plugin.checkpoints import load_checkpoint
from cnv2_plugin.cli import main
from cnv2_plugin.toolkits.openmmlab.runner_config import parse_options, use_amp

from .test_tools_data import load_tool

ROOT = Path(__file__).parents[2]
FASHION = ROOT / 'configs/fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    assert load_tool('prepare_fashion_mnist').main([str(folder), '--digits']) == 0
    return folder


def options(digits, epochs=1):
    """A run of six iterations an epoch, on some of the digits."""
    loaders = [
        f'{name}_dataloader.{option}'
        for name, count in dict(train=192, val=64, test=64).items()
        for option in (f'dataset.data_root={digits}', f'dataset.indices={count}', 'batch_size=32')
    ]
    return [
        '--cfg-options', *loaders, f'train_cfg.max_epochs={epochs}', 'default_hooks.checkpoint.interval=1',
        'train_cfg.val_interval=1', 'default_hooks.checkpoint.max_keep_ckpts=9', 'log_level=WARNING',
    ]  # fmt: skip


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    assert main(['train', str(FASHION), '--work-dir', str(folder), *options(digits)]) == 0
    return folder


@pytest.mark.slow
def test_trained_condensed_and_deployed_give_one_accuracy(trained, digits, tmp_path, capsys):
    checkpoint = str(trained / 'epoch_1.pth')
    command = ['deploy', str(FASHION), checkpoint, '--out', str(tmp_path / 'x.pth'), '--onnx', str(tmp_path / 'x.onnx')]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ('125,610', '1.28', 'max relative difference'))
    runs = dict(
        trained=[str(FASHION), checkpoint],
        condensed=[str(FASHION), checkpoint, '--deploy'],
        deployed=[str(tmp_path / 'x.py'), str(tmp_path / 'x.pth')],
    )
    found = {}
    for name, arguments in runs.items():
        out = tmp_path / f'{name}.json'
        more = ['--out', str(out), '--work-dir', str(tmp_path / name), *options(digits)]
        assert main(['test', *arguments, *more]) == 0
        found[name] = json.loads(out.read_text())
    assert found['trained'] == found['condensed'] == found['deployed']
    assert 'accuracy/top1' in capsys.readouterr().out
    assert onnxruntime.InferenceSession(tmp_path / 'x.onnx').get_inputs()[0].shape[1:] == [1, 40, 40]
    assert Config.fromfile(tmp_path / 'x.py').model.backbone.deploy is True


def environment(**more):
    """A shell's, where ``cnv2`` is that of this Python."""
    path = f'{Path(sys.executable).parent}:/usr/bin:/bin'
    return dict(PATH=path, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **more)


@pytest.mark.slow
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_the_only_words_on_stdout_are_the_json(launcher, trained, digits, tmp_path):
    python = [sys.executable, '-m', *(('torch.distributed.run', '--nproc_per_node=2', '--master_port=29618', '-m')
                                      if launcher == 'pytorch' else ())]  # fmt: skip
    command = [*python, 'cnv2_plugin.cli', 'test', str(FASHION), str(trained / 'epoch_1.pth'), '--json']
    shown = [option for option in options(digits) if not option.startswith('log_level')]
    result = subprocess.run(
        [*command, '--launcher', launcher, *shown], env=environment(), cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (table,) = json.loads(result.stdout)['tables']
    assert table['rows'][0][0] == 'accuracy/top1' and 'accuracy/top1' in result.stderr


def test_broken_weights_are_named_before_they_are_measured(trained, digits, tmp_path, capsys):
    checkpoint = load_checkpoint(trained / 'epoch_1.pth')
    checkpoint['state_dict']['backbone.stem.weight'].fill_(torch.nan)
    torch.save(dict(state_dict=checkpoint['state_dict']), tmp_path / 'nan.pth')
    command = ['test', str(FASHION), str(tmp_path / 'nan.pth'), '--deploy', '--work-dir', str(tmp_path / 'work')]
    assert main([*command, *options(digits)]) == 1
    assert 'cnv2 test: backbone.stem.weight of the model to test has NaN' in capsys.readouterr().err


def test_resume_goes_on_with_the_last_epoch(trained, digits, tmp_path):
    first = load_checkpoint(trained / 'epoch_1.pth')
    assert first['meta']['iter'] == 6
    (tmp_path / 'last_checkpoint').write_text(str(trained / 'epoch_1.pth'))
    assert main(['train', str(FASHION), '--work-dir', str(tmp_path), '--resume', *options(digits, 2)]) == 0
    assert load_checkpoint(tmp_path / 'epoch_2.pth')['meta']['iter'] == 12 and not (tmp_path / 'epoch_1.pth').exists()


def test_ema_and_plain_weights_can_both_be_deployed(digits, tmp_path):
    hooks = "custom_hooks=[dict(type='StagedSparsificationHook'),dict(type='EMAHook',momentum=0.3)]"
    config = tmp_path / 'ema.py'
    config.write_text(f"_base_ = '{FASHION}'\n{hooks}\n")
    assert main(['train', str(config), '--work-dir', str(tmp_path), '--no-validate', *options(digits)]) == 0
    for name, flags in (('averaged', []), ('plain', ['--no-ema'])):
        out = str(tmp_path / f'{name}.pth')
        assert main(['deploy', str(config), str(tmp_path / 'epoch_1.pth'), '--out', out, *flags]) == 0
    ema, plain = (load_checkpoint(tmp_path / f'{name}.pth')['state_dict'] for name in ('averaged', 'plain'))
    assert ema.keys() == plain.keys() and not torch.equal(ema['head.fc.weight'], plain['head.fc.weight'])
    averaged = load_checkpoint(tmp_path / 'epoch_1.pth')['state_dict']
    assert torch.equal(ema['head.fc.weight'], averaged['head.fc.weight'])


WRONG_USES = ('ends in .safetensors', 'without --arch', '--arch NAME', 'takes key=value')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['train', 'missing.py'], 'missing.py is not a file'),
        (['train', 'empty.py'], 'defines no model'),
        (['train', 'model.py'], 'no train_dataloader'),
        (['test', 'model.py', 'missing.pth'], 'missing.pth is not a file'),
        (['test', 'model.py', 'model.py'], 'no test_dataloader'),
        (['train', str(FASHION), '--cfg-options', 'nonsense'], 'takes key=value'),
        (['train', str(FASHION), '--launcher', 'pytorch'], 'torchrun'),
        (['deploy', 'model.py', 'missing.pth', '--out', 'x.pth'], 'missing.pth is not a file'),
        (['deploy', 'model.py', 'missing.pth', '--out', 'x.safetensors'], 'ends in .safetensors'),
        (['deploy', 'model.py', 'x.pth', '--arch', 'condensenetv2_a', '--out', 'x.pth'], 'without --arch'),
        (['deploy', 'x.pth', '--out', 'x.pth'], '--arch NAME'),
        (['deploy', str(FASHION), '{trained}', '--out', 'x.pth', '--tolerance', '0'], 'nothing was written'),
        (['deploy', 'v1.py', '{trained}', '--out', 'x.pth'], 'does not fit v1.py'),
        (['deploy', 'v1.py', '{trained}', '--out', 'v1.pth'], 'would overwrite v1.py'),
    ],
)
def test_failures_are_one_sentence(arguments, message, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'empty.py').write_text('a = 1\n')
    (tmp_path / 'model.py').write_text("model = dict(type='ImageClassifier', backbone=dict(type='CondenseNetV2'))\n")
    (tmp_path / 'v1.py').write_text(f"_base_ = '{FASHION.with_name(FASHION.name.replace('v2-', '-'))}'\n")
    before = sorted(tmp_path.iterdir())
    code = 2 if message in WRONG_USES else 1
    assert main([argument.format(trained=trained / 'epoch_1.pth') for argument in arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert sorted(tmp_path.iterdir()) == before


def test_unfinished_pruning_is_not_deployed(tmp_path, capsys):
    from mmengine.registry import MODELS, DefaultScope

    cfg = Config.fromfile(FASHION)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'raw.pth')
    assert main(['deploy', str(FASHION), str(tmp_path / 'raw.pth'), '--out', str(tmp_path / 'x.pth')]) == 1
    assert 'Pruning is not finished' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['raw.pth']


def test_options_are_parsed_as_mmengine_does():
    given = ['a.b=3', 'c=[1,2]', 'd=x,y', 'f=true', 'g=1e-3', 'h=/a/b', 'k=a=b']
    assert parse_options(given) == {
        'a.b': 3,
        'c': [1, 2],
        'd': ['x', 'y'],
        'f': True,
        'g': 0.001,
        'h': '/a/b',
        'k': 'a=b',
    }


def test_mixed_precision_is_switched_on_where_there_is_cuda(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='needs CUDA'):
            use_amp(cfg)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    use_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'


@pytest.mark.slow
def test_dist_train_runs_two_processes_without_cuda(digits, tmp_path):
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), str(FASHION), '2', '--work-dir', str(tmp_path / 'run')]
    result = subprocess.run(
        [*command, *options(digits, 2)], env=environment(PORT='29617'), cwd=tmp_path, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    checkpoint = load_checkpoint(tmp_path / 'run/epoch_2.pth')
    assert checkpoint['meta']['iter'] == 6
    masks = [value for key, value in checkpoint['state_dict'].items() if key.endswith('.mask')]
    assert masks and all(mask.float().mean() == 0.25 for mask in masks)
    written = Config.fromfile(tmp_path / 'run' / FASHION.name)
    assert written.launcher == 'pytorch' and written.model_wrapper_cfg.device_ids is None

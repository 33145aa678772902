"""From a config file and command-line options to a runner of mmpretrain or mmdet, and the models inside of it."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ...checkpoints import find_state_dict, load_checkpoint
from ...checkpoints.io import misfit
from ...config_files import config_path
from .safe_loading import check_start

_TORCHRUN_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')


def load_config(
    path: str, work_dir: Optional[str] = None, launcher: str = 'none', options: Sequence[str] = ()
) -> Config:
    """Read a config, a file or ``cnv2_plugin::NAME``, and apply what the command line adds; refuse what is none."""
    if '::' in path:
        path = str(config_path(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} is not a file; give the path of a config.')
    if Path(path).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise ValueError(f'{path} ends in {Path(path).suffix or "nothing"}; a config ends in .py, .json or .yaml.')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f'{path} is no config: {error.msg} in line {error.lineno}; correct it there.') from error
    if cfg.get('model') is None:
        raise ValueError(f'{path} defines no model; give the config of a whole run.')
    cfg.merge_from_dict(parse_options(options))
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Turn ``a.b=value`` into a dict, as mmengine's own ``--cfg-options`` does; raise ValueError for anything else."""
    for option in options:
        if '=' not in option.lstrip('='):
            raise ValueError(f'--cfg-options got {option!r}; it takes key=value, such as train_cfg.max_epochs=3.')
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--', *options]).options


def use_amp(cfg: Config) -> None:
    """Switch a config to mmengine's mixed precision; raise ValueError where that is not to be had."""
    if not torch.cuda.is_available():
        raise ValueError('--amp needs CUDA: mmengine offers mixed precision on accelerators only; leave it out here.')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp replaces OptimWrapper, but the config has optim_wrapper of type {kind}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def build_runner(cfg: Config, trust: bool = False) -> Runner:
    """Build the runner, whatever its type; unless ``trust``, look first at the checkpoint that it starts from."""
    if not trust:
        check_start(cfg)
    prepare_cpu_launch(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def load_whole(runner: Runner, config: str, check: Callable[[], None]) -> None:
    """Make a runner refuse, by a ValueError, a checkpoint that does not fit; mmengine's own only logs what is left out.

    Buffers of the data preprocessor, which older checkpoints hold, may be over. ``check`` is called after loading.
    """
    load = runner.load_checkpoint

    def load_strictly(filename: str, *args: Any, **options: Any) -> dict:
        try:
            loaded = load(filename, *args, **{**options, 'strict': True})
        except RuntimeError:
            given = find_state_dict(load_checkpoint(filename))
            given = {name: value for name, value in given.items() if not name.startswith('data_preprocessor.')}
            fault = misfit(plain_model(runner).state_dict(), given)
            if fault:
                raise ValueError(
                    f'{filename} does not fit {config}: it {fault}; check that the checkpoint is of this config.'
                ) from None
            loaded = load(filename, *args, **options)
        check()
        return loaded

    runner.load_checkpoint = load_strictly


def prepare_cpu_launch(cfg: Config) -> bool:
    """Make a config with ``launcher='pytorch'`` run on CPUs, where mmengine's own launcher calls CUDA.

    Joins a gloo process group, which mmengine then finds initialised, and sets ``model_wrapper_cfg`` so that the model
    is wrapped by ``MMDistributedDataParallel(device_ids=None)``. Does nothing where there is CUDA, or another launcher.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or torch.cuda.is_available():
        return False
    missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"launcher='pytorch' needs the environment variables {', '.join(missing)}; start it with torchrun."
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    unused = cfg.get('find_unused_parameters', False)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    return True


def plain_model(runner: Runner) -> nn.Module:
    """The runner's model without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def ema_models(runner: Runner) -> list[nn.Module]:
    """The averaged models (``BaseAveragedModel``) of the runner's EMA hooks that have been set up."""
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model')]


def average_anew(ema_model: nn.Module) -> None:
    """Let an averaged model average the tensors that it has now."""
    named = ema_model.module.named_parameters()
    ema_model.avg_parameters = ema_model.module.state_dict() if ema_model.update_buffers else dict(named)

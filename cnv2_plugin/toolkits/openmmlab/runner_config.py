"""From a config file and command-line options to a runner of mmpretrain or mmdet."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ...config_files import config_path
from .distributed import prepare_cpu_launch
from .own_data import fit_to_own_data
from .safe_loading import check_start


def load_config(
    path: str, work_dir: Optional[str] = None, launcher: str = 'none', options: Sequence[str] = ()
) -> Config:
    """Read a config and apply what the command line adds.

    Args:
        path: config file (``.py``, ``.json`` or ``.yaml``), or ``cnv2_plugin::NAME`` for one of the package's.
        work_dir: where the run writes; by default the config's own, else ``work_dirs/<name of the config>``.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        options: ``key=value`` with dotted keys, as OpenMMLab's ``--cfg-options``.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the file is no config, the package has none of that name, an option is malformed, or the user's own
            data is no data set of the kind that the config wants.
    """
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
    if options:
        cfg.merge_from_dict(parse_options(options))
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    fit_to_own_data(cfg)
    return cfg


def check_options(options: Sequence[str]) -> None:
    """Refuse options that are not ``key=value``.

    Raises:
        ValueError: an option has no key or no ``=``.
    """
    for option in options:
        if '=' not in option.lstrip('='):
            raise ValueError(f'--cfg-options got {option!r}; it takes key=value, such as train_cfg.max_epochs=3.')


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Turn ``a.b=value`` into a dict, as mmengine's own ``--cfg-options`` does.

    Raises:
        ValueError: an option has no key or no ``=``.
    """
    check_options(options)
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='+', action=DictAction)
    return parser.parse_args(['--', *options]).options


def use_amp(cfg: Config) -> None:
    """Switch a config to mmengine's mixed precision.

    Raises:
        ValueError: there is no accelerator for it, or the config has an optimiser wrapper of its own kind.
    """
    if not torch.cuda.is_available():
        raise ValueError('--amp needs CUDA: mmengine offers mixed precision on accelerators only; leave it out here.')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp replaces OptimWrapper, but the config has optim_wrapper of type {kind}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def build_runner(cfg: Config, trust: bool = False) -> Runner:
    """Build the runner, whatever its type, ready for distributed training without CUDA too.

    Args:
        cfg: config of the run.
        trust: do not look at the checkpoint that it starts from.

    Raises:
        CheckpointError: that checkpoint is damaged, or reading it could run code.
    """
    if not trust:
        check_start(cfg)
    prepare_cpu_launch(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)

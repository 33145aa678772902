"""From a config file and command-line options to a runner of mmpretrain or mmdet."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .distributed import prepare_cpu_launch

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def load_config(
    path: str, work_dir: Optional[str] = None, launcher: str = 'none', options: Sequence[str] = ()
) -> Config:
    """Read a config and apply what the command line adds.

    Args:
        path: config file (``.py``, ``.json`` or ``.yaml``).
        work_dir: where the run writes; by default the config's own, else ``work_dirs/<name of the config>``.
        launcher: one of ``LAUNCHERS``.
        options: ``key=value`` with dotted keys, as OpenMMLab's ``--cfg-options``.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: the file is no config, or an option is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} is not a file; give the path of a config.')
    cfg = Config.fromfile(path)
    if cfg.get('model') is None:
        raise ValueError(f'{path} defines no model; give the config of a whole run.')
    if options:
        cfg.merge_from_dict(parse_options(options))
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(path).stem)
    return cfg


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Turn ``a.b=value`` into a dict; values are Python literals, comma lists, true, false and none, or text.

    Raises:
        ValueError: an option has no ``=``.
    """
    parsed = {}
    for option in options:
        key, equals, text = option.partition('=')
        if not equals or not key:
            raise ValueError(f'--cfg-options got {option!r}; it takes key=value, such as train_cfg.max_epochs=3.')
        parsed[key] = _value(text)
    return parsed


def _value(text: str) -> Any:
    words = {'true': True, 'false': False, 'none': None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [_value(part) for part in text.split(',')] if ',' in text and text[0] not in '[({' else text


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


def build_runner(cfg: Config) -> Runner:
    """Build the runner, whatever its type, ready for distributed training without CUDA too."""
    prepare_cpu_launch(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)

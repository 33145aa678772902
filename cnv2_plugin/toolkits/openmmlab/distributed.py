"""Distributed training without CUDA.

mmengine's pytorch launcher calls ``torch.cuda.set_device`` and wraps models with ``device_ids``, so that it fails on a
machine without CUDA although gloo would do.
"""

import os
from datetime import timedelta

import torch
import torch.distributed
from mmengine.config import Config

_TORCHRUN_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')


def prepare_cpu_launch(cfg: Config, timeout: float = 1800.0) -> bool:
    """Make a config with ``launcher='pytorch'`` run on CPUs; call it before ``Runner.from_cfg``.

    Joins a gloo process group, which mmengine then finds initialised, and sets ``model_wrapper_cfg`` so that the model
    is wrapped by ``MMDistributedDataParallel(device_ids=None)``. Does nothing where there is CUDA, or another launcher.

    Args:
        cfg: config of the run; changed in place.
        timeout: seconds that a collective operation waits for the other processes.

    Returns:
        Whether this run is a distributed CPU run.

    Raises:
        RuntimeError: if the process was not started by torchrun.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or torch.cuda.is_available():
        return False
    missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"launcher='pytorch' needs the environment variables {', '.join(missing)}; start it with torchrun."
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    return True

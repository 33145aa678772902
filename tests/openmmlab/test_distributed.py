"""Two gloo processes on the CPU."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from cnv2_plugin.toolkits.openmmlab.runner_config import prepare_cpu_launch


def launch(*arguments) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}']
    command += ['-m', 'tests.openmmlab.distributed_run', *map(str, arguments)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_ranks_end_with_identical_masks_and_weights(tmp_path):
    result = launch(tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f'rank_{rank}.pth') for rank in (0, 1))
    statistics = ('running_mean', 'running_var')
    for key, value in first.items():
        if not key.endswith(statistics):
            assert torch.equal(value, second[key]), key
    masks = [value for key, value in first.items() if key.endswith('.mask')]
    assert masks and all(0 < mask.float().mean() < 1 for mask in masks)
    taught = torch.load(tmp_path / 'teacher.pth')['state_dict']
    assert all(value.all() for key, value in taught.items() if key.endswith('.mask'))
    assert (tmp_path / 'epoch_4_deploy.pth').exists() and (tmp_path / 'epoch_4_deploy.py').exists()


@pytest.mark.slow
def test_diverged_ranks_are_stopped_with_a_sentence(tmp_path):
    result = launch(tmp_path, 'diverge')
    assert result.returncode != 0
    assert 'masks of ranks 1 differ' in result.stderr


def test_other_launchers_are_left_alone_and_missing_variables_named(monkeypatch):
    cfg = Config(dict(launcher='none'))
    assert not prepare_cpu_launch(cfg) and 'model_wrapper_cfg' not in cfg
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match='torchrun'):
            prepare_cpu_launch(Config(dict(launcher='pytorch')))

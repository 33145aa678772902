"""Kill -9 in the pruning half, then resume: as if nothing had happened."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .stand_ins import hook_of, runner_config, train


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    iteration = random.Random(seed).randrange(4, 12)
    print(f'killed at iteration {iteration} of 24 (seed {seed})')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(runner_config(tmp_path / 'whole', epochs=6))
        killed = tmp_path / 'killed'
        root = Path(__file__).parents[2]
        command = [sys.executable, '-m', 'tests.openmmlab.kill_run', str(killed), str(iteration)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert result.returncode == -9, result.stderr
        saved = sorted(path.name for path in killed.glob('epoch_*.pth'))
        assert saved == [f'epoch_{e}.pth' for e in range(1, iteration // 4 + 1)]
        resumed = train(runner_config(killed, epochs=6, resume=True))
    finally:
        torch.set_num_threads(threads)
    expected, actual = hook_of(whole, 'Recorder').records, hook_of(resumed, 'Recorder').records
    assert sorted(actual) == list(range(iteration // 4 * 4, 24))
    for i, record in actual.items():
        assert record['loss'] == expected[i]['loss'], f'iteration {i}'
        assert all(torch.equal(record['masks'][k], v) for k, v in expected[i]['masks'].items()), f'iteration {i}'
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values())
    )

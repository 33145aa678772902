"""A training run that kills itself with SIGKILL: ``python -m tests.openmmlab.kill_run WORK_DIR ITERATION``."""

import os
import signal
import sys

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .stand_ins import runner_config


class Kill(Hook):
    """Ends the process in the middle of an iteration's hooks."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    torch.set_num_threads(1)
    runner = Runner.from_cfg(runner_config(sys.argv[1], epochs=6))
    runner.register_hook(Kill(int(sys.argv[2])))
    runner.train()


if __name__ == '__main__':
    main()

"""One rank of a gloo run on CPU: ``torchrun ... -m tests.openmmlab.distributed_run WORK_DIR [diverge]``."""

import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.runner import Runner

from cnv2_plugin.toolkits.openmmlab.runner_config import prepare_cpu_launch

from .stand_ins import classifier, runner_config, without_sparsification


def main() -> None:
    torch.set_num_threads(1)
    work_dir = Path(sys.argv[1])
    cfg = runner_config(work_dir, epochs=4, launcher='pytorch', model=classifier(norm_cfg=dict(type='BN')))
    options = {} if 'diverge' in sys.argv else dict(recalibrate=2, start=0.1)
    cfg = without_sparsification(cfg, group_lasso=1e-4, **options)
    if options:
        cfg.custom_hooks.append(dict(type='DistillationHook', teacher='first_stage'))
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.3))
    cfg.custom_hooks.append(dict(type='SwitchToDeployHook'))
    assert prepare_cpu_launch(cfg)
    runner = Runner.from_cfg(cfg)
    assert type(runner.model).__name__ == 'MMDistributedDataParallel' and runner.world_size == 2
    if 'diverge' in sys.argv:
        diverge(runner)
    runner.train()
    torch.save(runner.model.module.state_dict(), work_dir / f'rank_{get_rank()}.pth')
    torch.distributed.destroy_process_group()


def diverge(runner) -> None:
    """Make the second rank's weights different once training has begun."""
    first = next(iter(runner.model.module.backbone.sparse_layers()))

    def flip(module, args):
        if get_rank() == 1 and module.training:
            with torch.no_grad():
                first.conv.weight.copy_(first.conv.weight.flip(1))

    runner.model.module.backbone.register_forward_pre_hook(flip)


if __name__ == '__main__':
    main()

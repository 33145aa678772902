"""``cnv2 train``: train a config of MMPretrain, MMDetection or another OpenMMLab library."""

import argparse

from ._usage import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file, or cnv2_plugin::NAME')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; work_dirs/<config> by default')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from a checkpoint, by default the last one of the work folder')  # fmt: skip
    parser.add_argument('--amp', action='store_true', help='mixed precision (CUDA)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_launch_arguments(parser)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share."""
    parser.add_argument('--launcher', default='none', choices=('none', 'pytorch', 'slurm', 'mpi'),
                        help='pytorch: processes of torchrun, with gloo where there is no CUDA')  # fmt: skip
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='change fields of the config')
    parser.add_argument('--trust', action='store_true', help='unpickle checkpoints; only for files you trust')


def open_config(args: argparse.Namespace):
    """The config of a run with what the options that training and testing share add to it."""
    from ..toolkits.openmmlab.runner_config import load_config, parse_options
    from ._own_data import fit_to_own_data

    try:
        parse_options(args.cfg_options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    cfg = load_config(args.config, args.work_dir, args.launcher, args.cfg_options)
    fit_to_own_data(cfg)
    return cfg


def run(args: argparse.Namespace) -> None:
    from ..toolkits.openmmlab.runner_config import build_runner, use_amp
    from ..toolkits.openmmlab.safe_loading import safe_loading

    cfg = open_config(args)
    if cfg.get('train_dataloader') is None or cfg.get('optim_wrapper') is None:
        raise ValueError(f'{args.config} has no train_dataloader or no optim_wrapper; give the config of a training.')
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UsageError(
                f'--auto-scale-lr is given, but {args.config} has no auto_scale_lr=dict(base_batch_size=...); add it '
                f'to the config, or leave the option out.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    with safe_loading(args.trust):
        build_runner(cfg, args.trust).train()

"""``cnv2 test``: evaluate a checkpoint of an OpenMMLab config, as trained, condensed or deployed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ._output import print_table, write_json
from ._usage import UsageError, check_paths
from .train import add_launch_arguments, open_config

if TYPE_CHECKING:
    from mmengine.runner import Runner

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file, or cnv2_plugin::NAME')
    parser.add_argument('checkpoint', help='checkpoint that fits the config, or the .onnx file of a whole '
                        'detector or segmenter')  # fmt: skip
    parser.add_argument('--deploy', action='store_true', help='condense the model first, and evaluate that')
    parser.add_argument('--work-dir', help='folder for logs; work_dirs/<config> by default')
    parser.add_argument('--out', help='JSON file to write the metrics to')
    parser.add_argument('--show-dir', help="folder for images painted by the toolkit's visualizer")
    add_launch_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Build the runner, test, and print the metrics."""
    from mmengine.dist import is_main_process

    from ..toolkits.openmmlab.runner_config import build_runner, load_whole
    from ..toolkits.openmmlab.safe_loading import safe_loading

    if not Path(args.checkpoint).is_file():
        raise FileNotFoundError(f'{args.checkpoint} is not a file; give the path of a checkpoint.')
    check_paths([args.out], [args.checkpoint, args.config])
    cfg = open_config(args)
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise ValueError(f'{args.config} has no test_dataloader or no test_evaluator; give a config that has both.')
    onnx = args.checkpoint.endswith('.onnx')
    if onnx and args.deploy:
        raise UsageError('--deploy condenses a checkpoint; an .onnx file is deployed already, so leave it out.')
    cfg.load_from = None if onnx else args.checkpoint
    cfg.resume = False
    if onnx:
        preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
        kind = 'OnnxSegmenter' if cfg.get('default_scope') == 'mmseg' else 'OnnxDetector'
        cfg.model = dict(type=kind, file=args.checkpoint, data_preprocessor=preprocessor)
        cfg.custom_hooks = []
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] != 'SwitchToDeployHook']
    cfg.custom_hooks = hooks + [dict(type='SwitchToDeployHook', after_train=False)] if args.deploy else hooks
    if args.show_dir:
        cfg.setdefault('default_hooks', {}).setdefault('visualization', {})
        cfg.default_hooks.visualization.update(_painting(cfg, str(Path(args.show_dir).resolve())))
    with safe_loading(args.trust):
        runner = build_runner(cfg, args.trust)
        if onnx:
            _check_classes(runner, args)
        else:
            load_whole(runner, args.config, lambda: _check_classes(runner, args))
        if not cfg.test_dataloader.dataset.get('pipeline', True):
            raise ValueError(f'{args.config} has no test pipeline; test_dataloader.dataset.pipeline takes its steps.')
        metrics = runner.test()
    if is_main_process():
        rows = [[name, f'{value:.4f}'] for name, value in metrics.items()]
        print_table('Metrics', ['metric', 'value'], rows, args.markdown)
        if args.out:
            write_json(args.out, {name: float(value) for name, value in metrics.items()})


def _check_classes(runner: 'Runner', args: argparse.Namespace) -> None:
    """Raise a ValueError where a detector, or what an ONNX file tells, has other classes than the test set."""
    from ..toolkits.openmmlab.runner_config import plain_model
    from ..whole.detectors import num_classes_of

    model = plain_model(runner)
    told = getattr(model, 'metadata', None) or dict(num_classes=num_classes_of(model))
    names = told.get('classes')
    classes = list(getattr(runner.test_dataloader.dataset, 'metainfo', {}).get('classes') or ())
    count = len(names) if names else told.get('num_classes')
    if classes and (count not in (None, len(classes)) or names and names != classes):
        raise ValueError(
            f'{args.checkpoint} knows {count} classes{f" ({names[0]}, ...)" if names else ""}, the test set of '
            f'{args.config} has {len(classes)} ({classes[0]}, ...); check that the file is of this config.'
        )


def _painting(cfg, folder: str) -> dict:
    """Options of the toolkit's visualization hook; mmdet's and mmpretrain's differ in names."""
    if cfg.get('default_scope') == 'mmdet':
        return dict(type='DetVisualizationHook', draw=True, test_out_dir=folder)
    return dict(type='VisualizationHook', enable=True, out_dir=folder)

"""``cnv2 deploy``: condense a trained checkpoint, prove that nothing changed, and write it."""

import argparse
from functools import partial
from pathlib import Path
from typing import Optional

from ._models import Source, open_model
from ._output import print_table
from ._usage import UsageError, add_input_option, add_weights_options, batch, check_input, check_output, keyword

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 deploy``."""
    parser.add_argument(
        'files', nargs='+', metavar='FILE',
        help='trained checkpoint of a timm model, or OpenMMLab config (file or cnv2_plugin::NAME) and checkpoint',
    )  # fmt: skip
    parser.add_argument('--arch', help='timm name, such as condensenetv2_a; needed without a config')
    parser.add_argument('--model-kwargs', type=keyword, nargs='*', default=[], metavar='KEY=VALUE',
                        help='further timm.create_model arguments, such as in_chans=1')  # fmt: skip
    parser.add_argument('--out', required=True, help='file to write; ends in .pth or .safetensors')
    parser.add_argument('--onnx', help='ONNX file to write too')
    add_input_option(parser)
    parser.add_argument('--batch', type=batch, default='dynamic', help="batch size of the ONNX file, or 'dynamic'")
    parser.add_argument('--tolerance', type=float, default=1e-5, help='largest relative difference that is accepted')
    parser.add_argument(
        '--classifier-keep', type=float,
        help="share of the classifier's inputs to keep, such as 0.5 (CondenseNet's lossy step; all by default)",
    )  # fmt: skip
    add_weights_options(parser)


def run(args: argparse.Namespace) -> None:
    """Condense, verify, write, and print what changed."""
    *config, args.checkpoint = args.files
    if len(config) > 1 or bool(config) == bool(args.arch):
        raise UsageError('give a checkpoint and --arch NAME, or a config and a checkpoint without --arch.')
    check_input(args.input)
    if args.onnx:
        check_output(args.onnx, ('.onnx',))
    check_output(args.out, ('.pth',) if config else ('.pth', '.pt', '.safetensors'))
    if config and (args.classifier_keep is not None or args.model_kwargs):
        raise UsageError('--classifier-keep and --model-kwargs are for timm models; a config says it all itself.')
    from ..checkpoints.io import check_finite
    from ..deploy.pipeline import deploy

    files = [Path(args.out)]
    if config:
        from ..toolkits.openmmlab.deploy_files import save_deployed
        from ._deploy_config import open_config_model

        files.append(files[0].with_suffix('.py'))
        for given, new in zip((args.checkpoint, *config), files):
            if Path(given).resolve() == new.resolve():
                raise ValueError(f'--out {args.out} would overwrite {given}; give another name.')
        source, cfg = open_config_model(*config, args)
        write = partial(save_deployed, cfg=cfg, meta=source.meta)
    else:
        source = open_model(args.checkpoint, args, trained=True)
        write = partial(_save, meta=dict(source.meta, deploy=True), classifier_keep=args.classifier_keep)
    check_finite(source.model.state_dict(), args.checkpoint)
    done = deploy(
        source.model, files, write, source.input_size, source.views, args.onnx and Path(args.onnx), args.batch,
        args.tolerance, source.metadata, args.classifier_keep,
    )  # fmt: skip
    _print_report(source, done, args)


def _save(condensed, path: Path, meta: dict, classifier_keep: Optional[float]) -> None:
    from ..checkpoints import save_checkpoint

    if classifier_keep is not None:
        meta = dict(meta, model_kwargs=dict(meta['model_kwargs'], classifier_keep=classifier_keep))
    save_checkpoint(condensed.state_dict(), path, meta)


def _print_report(source: Source, done, args: argparse.Namespace) -> None:
    """Print what condensing changed, in figures of both forms."""
    from ..analysis import count_cost

    name, view = next(iter(source.views.items()))
    before, after = (count_cost(view(model), source.input_size) for model in (source.model, done.model))
    exported = [done.export] if done.export else []
    sizes = [Path(args.checkpoint).stat().st_size, Path(args.out).stat().st_size, *(e.size for e in exported)]
    differences = [done.difference, *(e.verification.max_rel for e in exported)]
    header = ['', 'training form', 'condensed', 'ONNX'][: len(sizes) + 1]
    rows = [
        ['parameters', f'{before.params:,}', f'{after.params:,}', ''],
        ['multiply-adds (M)', f'{before.mult_adds / 1e6:.2f}', f'{after.mult_adds / 1e6:.2f}', ''],
        ['file size (MB)', *(f'{size / 1e6:.3f}' for size in sizes)],
        ['max relative difference', '', *(f'{difference:.2e}' for difference in differences)],
    ]
    if done.loss:
        dropped, loss = done.loss
        rows += [
            ['classifier inputs kept', f'{dropped.inputs:,}', f'{dropped.kept:,}'],
            ['L1 norm of the classifier dropped', '', f'{dropped.dropped_l1:.1%}'],
            ['max relative difference by that', '', f'{loss.max_rel:.2e}'],
            [f'same top-1 class ({loss.num_inputs} random images)', '', f'{loss.argmax_agreement:.1%}'],
        ]
    title = 'Deployed; figures and ONNX of backbone and neck' if name.startswith('Features') else 'Deployed'
    print_table(title, header, [row[: len(header)] for row in rows])

"""``cnv2 deploy``: condense a finished model, prove that nothing changed, and write it for whatever reads it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._models import Source, add_model_options, is_name, open_config_model, open_model
from ._output import print_table
from ._usage import CHECKPOINTS, UsageError, add_input_option, batch, check_output, check_paths, keyword, number

if TYPE_CHECKING:
    from ..deploy.pipeline import Deployment, Output

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 deploy``, which ``cnv2 export`` shares."""
    parser.add_argument(
        'files', nargs='*', metavar='FILE',
        help='checkpoint or name (random weights) of a timm model, or OpenMMLab config (file or cnv2_plugin::NAME) '
             'and checkpoint',
    )  # fmt: skip
    parser.add_argument(
        '--out', required=True, nargs='+', action='extend', metavar='FILE',
        help='file to write, may be several; the ending says what: .pth or .safetensors (condensed checkpoint), .onnx, '
             '.xml (OpenVINO), .pt2 (torch.export), .pte (ExecuTorch), .param (ncnn), .mlpackage (CoreML)',
    )  # fmt: skip
    parser.add_argument('--onnx', metavar='FILE', help='ONNX file to write too, as --out FILE')
    parser.add_argument('--model-kwargs', type=keyword, nargs='*', default=[], metavar='KEY=VALUE',
                        help='further timm.create_model arguments, such as in_chans=1')  # fmt: skip
    add_input_option(parser)
    parser.add_argument('--batch', type=batch, help="images in a call, or 'dynamic' (.onnx only, and its default)")
    parser.add_argument('--no-optimize', action='store_true', help='group convolutions as they are (.onnx only)')
    parser.add_argument('--native', action='store_true', help='stages in the native kernels (.onnx and .pt2; opening '
                        'the file takes this package, see docs/deployment.md)')  # fmt: skip
    parser.add_argument('--int8', type=Path, metavar='IMAGES', help='quantise statically too, calibrated on the images '
                        'in this folder (.onnx only)')  # fmt: skip
    parser.add_argument('--finish', action='store_true', help='prune the stages now that a training did not reach')
    parser.add_argument('--images', type=Path, metavar='DIR', help='with --finish: measure the statistics of '
                        'normalisations again on the images in this folder')  # fmt: skip
    parser.add_argument('--opset', type=int, metavar='N', help='version of the ONNX operators, 17 to 20 (the default)')
    parser.add_argument('--tolerance', type=number, default=1e-5, help='largest relative difference that is accepted')
    parser.add_argument(
        '--classifier-keep', type=float,
        help="share of the classifier's inputs to keep, such as 0.5 (CondenseNet's lossy step; all by default)",
    )  # fmt: skip
    parser.add_argument('--features', action='store_true', help='of a detector or segmenter, backbone and neck '
                        'only, as files other than .onnx and .xml always hold')  # fmt: skip
    parser.add_argument('--logits', action='store_true', help='of a segmenter, write the logits beside the mask')
    parser.add_argument('--forms', action='store_true', help='print the implementation of every layer')
    parser.add_argument('--quiet', action='store_true', help='no progress')
    add_model_options(parser)
    parser.set_defaults(wrong_usage=parser.error)


def run(args: argparse.Namespace) -> None:
    """Condense, verify, write, and print what changed."""
    if not args.files:  # --out FILE CONFIG CHECKPOINT
        args.out, args.files = args.out[:1], args.out[1:]
    if not args.files:
        args.wrong_usage('give a checkpoint or a name, or a config and a checkpoint.')
    from ..checkpoints.io import check_finite
    from ..deploy.pipeline import deploy

    *config, given = args.files
    outs = [Path(out) for out in [*args.out, *([args.onnx] if args.onnx else [])]]
    _check(args, config, outs)
    groups = [_paths(out, bool(config), bool(args.int8)) for out in outs]
    check_paths([path for paths in groups for path in paths], args.files)
    trains = any(out.suffix in CHECKPOINTS for out in outs)
    source = open_config_model(*config, given, args, trains) if config else open_model(given, args, trains)
    if args.logits and (source.kind != 'segmenter' or args.features):
        raise UsageError('--logits is for segmenters of MMSegmentation, without --features.')
    check_finite(source.model.state_dict(), given)
    _finish(source, args)
    outputs = [(_checkpoint if paths[0].suffix in CHECKPOINTS else _exported)(paths, source, args) for paths in groups]
    done = deploy(source.model, outputs, source.input_size, source.views, args.tolerance, args.classifier_keep)
    _print_report(source, done, args)


def _finish(source: Source, args: argparse.Namespace) -> None:
    """Do what is missing of the pruning where ``--finish`` asks for it, and print what that changes; else say it."""
    from ..deploy.finish import finish, missing_stages, say_missing
    from ..deploy.quantize import image_batches

    missing = missing_stages(source.model)
    if not missing:
        return
    if not args.finish:
        raise ValueError(
            f'Pruning is not finished: in {args.files[-1]} {say_missing(missing)}. Resume the training, or prune what '
            f'is missing now with --finish (and --images DIR for the statistics), as prune_to() does in Python.'
        )
    batches: list = []
    if args.images:
        import numpy
        import torch

        found = image_batches(args.images, ('batch', *source.input_size), source.model.pretrained_cfg)
        batches = list(torch.from_numpy(numpy.concatenate(found)).split(32))
    images, shares = finish(source.model, next(iter(source.views.values())), source.input_size, batches)
    compared = f'same top-1 class as before, of {images} {"images" if batches else "random images"}'
    texts = (compared, 'the same with statistics of these images')
    rows = [[text, f'{share:.1%}'] for text, share in zip(texts, shares)]
    print_table(f'Finished: {say_missing(missing)}', ['', ''], rows, args.markdown)


def _check(args: argparse.Namespace, config: list[str], outs: list[Path]) -> None:
    """Raise where options contradict one another or a file cannot be written, before the work begins."""
    from ..deploy.runtimes import RUNTIMES
    from ..deploy.runtimes.onnxruntime import OPSETS

    runtimes = {kind.suffixes[0]: kind.name for kind in RUNTIMES.values()}
    if args.onnx:
        check_output(args.onnx, ('.onnx',), '--onnx')
    for out in outs:
        check_output(out, (*(('.pth',) if config else CHECKPOINTS), *runtimes))
    exports = [out.suffix for out in outs if out.suffix in runtimes]
    needs_arch = len(exports) < len(outs) and not config and not is_name(args.files[0])
    if len(config) > 1 or config and args.arch or needs_arch and not args.arch:
        raise UsageError('give a checkpoint and --arch NAME, or a config and a checkpoint without --arch.')
    if config and (args.classifier_keep is not None or args.model_kwargs or args.int8):
        raise UsageError('--classifier-keep, --model-kwargs and --int8 are for timm models, not for those of a config.')
    if args.native and args.no_optimize:
        raise UsageError('--native rewrites the model; give it without --no-optimize.')
    if args.images and (config or not args.finish):
        raise UsageError('--images goes with --finish, for timm models.')
    if args.opset is not None and args.opset not in OPSETS:
        raise UsageError(f'--opset is {args.opset}; it takes {OPSETS[0]} to {OPSETS[-1]}.')
    for option, fitting, given in (
        ('--no-optimize', ('.onnx',), args.no_optimize),
        ('--int8', ('.onnx',), args.int8),
        ('--opset', ('.onnx',), args.opset is not None),
        ('--native', ('.onnx', '.pt2'), args.native),
        ('--batch dynamic', ('.onnx',), exports and args.batch == 'dynamic'),
    ):
        others = [runtimes[suffix] for suffix in exports if suffix not in fitting]
        if given and (others or not exports):
            others = others or ['checkpoints']
            raise UsageError(f'{option} is for {" and ".join(fitting)} files, not for {" and ".join(others)}.')


def _paths(out: Path, has_config: bool, int8: bool) -> tuple[Path, ...]:
    """The files that are written together for one ``--out``."""
    from ..deploy.runtimes import RUNTIMES

    if out.suffix in CHECKPOINTS:
        return (out, out.with_suffix('.py')) if has_config else (out,)
    kind = next(kind for kind in RUNTIMES.values() if kind.suffixes[0] == out.suffix)
    return (*map(out.with_suffix, kind.suffixes), *([out.with_stem(f'{out.stem}-int8')] if int8 else []))


def _checkpoint(paths: tuple[Path, ...], source: Source, args: argparse.Namespace) -> 'Output':
    """The condensed checkpoint, with the config that builds its model where one built the given model."""
    from ..checkpoints import save_checkpoint
    from ..deploy.pipeline import Output

    meta = dict(source.meta, deploy=True, **(dict(preprocessing=source.metadata) if source.metadata else {}))
    if args.classifier_keep is not None:
        meta['model_kwargs'] = dict(meta['model_kwargs'], classifier_keep=args.classifier_keep)

    def write(condensed: Any, weights: Path, *config: Path) -> list[list]:
        if config:
            from ..toolkits.openmmlab.deploy_files import save_deployed

            save_deployed(condensed, weights, *config, source.cfg, source.meta)
        else:
            save_checkpoint(condensed.state_dict(), weights, meta)
        return [[_names(paths), weights.stat().st_size, '', 'condensed checkpoint']]

    return Output(paths, write)


def _exported(paths: tuple[Path, ...], source: Source, args: argparse.Namespace) -> 'Output':
    """A file for a runtime, with a quantised one beside it where ``--int8`` asks for it."""
    from ..deploy import export_onnx
    from ..deploy.pipeline import Output
    from ..deploy.quantize import compare_int8, image_batches, quantize_onnx
    from ..deploy.runtimes import RUNTIMES, export_runtime
    from ..deploy.runtimes.base import check_free
    from ..deploy.runtimes.onnxruntime import OPSETS

    view, size = next(iter(source.views.values())), source.input_size
    kind = next(kind for kind in RUNTIMES.values() if kind.suffixes[0] == paths[0].suffix)
    is_onnx = kind.name == 'onnxruntime'
    check_free(paths[: len(kind.suffixes)], kind)
    batch = args.batch or ('dynamic' if is_onnx else 1)
    images = image_batches(args.int8, (batch, *size), source.model.pretrained_cfg) if args.int8 else []

    def write(condensed: Any, file: Path, *others: Path) -> list[list]:
        if source.kind != 'classifier' and kind.name in ('onnxruntime', 'openvino') and not args.features:
            return [_whole(paths, file, source, batch, args)]
        model, options = view(condensed), dict(tolerance=args.tolerance, native=args.native, metadata=source.metadata)
        if is_onnx:
            options.update(optimize=not args.no_optimize)
            report = export_onnx(model, file, size, batch, opset=args.opset or OPSETS[-1], **options)
            nodes = ', '.join(f'{count} {name}' for name, count in sorted(report.operators.items()))
            holds = f'opset {report.opset}: {nodes}'
        else:
            report = export_runtime(model, kind.name, file, size, batch, **options)
            holds = f'{kind.name}, implementations chosen for {len(report.forms)} layers'
        checked = f'{report.verification.max_rel:.2e}' if report.verification else 'not run here'
        if args.forms and report.forms:
            print_table('Implementations', ['layer', 'implementation'], sorted(report.forms.items()), args.markdown)
        rows = [[_names(paths[: len(kind.suffixes)]), report.size, checked, holds]]
        if images:
            if args.native:
                export_onnx(model, others[-1], size, batch, int8=images, opset=args.opset or OPSETS[-1], **options)
                done = compare_int8(file, others[-1], images)
            else:
                done = quantize_onnx(file, others[-1], images)
            same = f'int8: same class as float32 on {done.agreement:.1%} of {done.images} images'
            same += f', {done.int8.min / done.float32.min:.2f} of its time'
            rows.append([paths[-1], done.size, f'{done.max_rel:.2e}', same])
        return rows

    return Output(paths, write)


def _whole(paths: tuple[Path, ...], file: Path, source: Source, batch: Any, args: argparse.Namespace) -> list:
    """Write a detector from images to boxes, or a segmenter to masks; returns the row that tells of it."""
    from ..whole.detectors import export_detector
    from ..whole.segmenters import export_segmenter
    from ._config_models import test_images

    if args.no_optimize or args.opset is not None:
        raise UsageError('--no-optimize and --opset are for classifiers, and for other models with --features.')
    count = batch if batch != 'dynamic' else 2 if source.kind == 'detector' else 1
    options: dict[str, Any] = dict(
        input_size=source.input_size, batch=batch, fixed_size=bool(args.input) or file.suffix == '.xml',
        native=args.native, tolerance=args.tolerance, images=test_images(source.cfg, source.model, count),
        metadata=source.metadata,
    )  # fmt: skip
    if source.kind == 'segmenter':
        masks = export_segmenter(source.model, file, logits=args.logits, **options)
        seen = masks.verification
        compared = f'{seen.pixels} pixels in {seen.images} images have the class that predict gives'
        compared += f', but for {seen.level} of two classes as likely' if seen.level else ''
        return [_names(paths), masks.size, f'{seen.max_rel:.2e}', f'whole segmenter: {compared}']
    report = export_detector(source.model, file, **options)
    found = report.verification
    compared = f'{found.boxes} boxes in {found.images} images as predict finds them, to {found.max_box:.1e} pixels'
    if not found.boxes:
        compared = f'predict finds no box in the {found.images} images that were compared, nor does the file'
    if found.unmatched:
        compared += f', but for {found.unmatched} at thresholds'
    return [_names(paths), report.size, f'{found.max_score:.2e}', f'whole detector: {compared}']


def _names(paths: Sequence[Path]) -> str:
    return ', '.join(map(str, paths))


def _print_report(source: Source, done: 'Deployment', args: argparse.Namespace) -> None:
    """Print what condensing changed, in figures of both forms, and what was written."""
    from ..analysis import count_cost

    name, view = next(iter(source.views.items()))
    before, after = (count_cost(view(model), source.input_size) for model in (source.model, done.model))
    rows = [
        ['parameters', f'{before.params:,}', f'{after.params:,}'],
        ['multiply-adds (M)', f'{before.mult_adds / 1e6:.2f}', f'{after.mult_adds / 1e6:.2f}'],
        ['max relative difference', '', f'{done.difference:.2e}'],
    ]
    if done.loss:
        dropped, loss = done.loss
        rows += [
            ['classifier inputs kept', f'{dropped.inputs:,}', f'{dropped.kept:,}'],
            ['L1 norm of the classifier dropped', '', f'{dropped.dropped_l1:.1%}'],
            ['max relative difference by that', '', f'{loss.max_rel:.2e}'],
            [f'same top-1 class ({loss.num_inputs} random images)', '', f'{loss.argmax_agreement:.1%}'],
        ]
    title = 'Deployed; figures of backbone and neck' if source.kind != 'classifier' else 'Deployed'
    print_table(title, ['', 'as given', 'condensed'], rows, args.markdown)
    given = Path(args.files[-1])
    files = [[given, given.stat().st_size, '', 'as given']] if given.is_file() else []
    files += [row for rows in done.reports for row in rows]
    header = ['file', 'file size (MB)', 'max relative difference', 'holds']
    rows = [[name, f'{size / 1e6:.3f}', checked, holds] for name, size, checked, holds in files]
    print_table(source.name, header, rows, args.markdown)

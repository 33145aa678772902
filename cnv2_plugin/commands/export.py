"""``cnv2 export``: write a finished model for a runtime, every layer in its fastest exact form."""

import argparse
from pathlib import Path

from ._models import add_model_options, open_model
from ._output import print_table
from ._usage import UsageError, add_input_option, batch, check_input

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 export``."""
    parser.add_argument('model', metavar='CKPT|NAME', help='finished checkpoint, or timm name for random weights')
    parser.add_argument('--out', required=True, type=Path, help='file to write; its ending tells the runtime: '
                        '.onnx, .xml (OpenVINO), .pt2 (torch.export), .pte (ExecuTorch), .param (ncnn), .mlpackage '
                        '(CoreML)')  # fmt: skip
    add_input_option(parser)
    parser.add_argument('--batch', type=batch, help="images in a call, or 'dynamic' (.onnx only, and its default)")
    parser.add_argument('--no-optimize', action='store_true', help='group convolutions as they are (.onnx only)')
    parser.add_argument('--native', action='store_true', help='stages in the native kernels (.onnx and .pt2; opening '
                        'the file takes this package, see docs/deployment.md)')  # fmt: skip
    parser.add_argument('--int8', type=Path, metavar='IMAGES', help='quantise statically, calibrated on the images in '
                        'this folder (.onnx only)')  # fmt: skip
    parser.add_argument('--tolerance', type=_amount, default=1e-5, help='largest relative difference that is accepted')
    parser.add_argument('--forms', action='store_true', help='print the implementation of every layer')
    parser.add_argument('--markdown', action='store_true', help='print the tables as Markdown')
    parser.add_argument('--quiet', action='store_true', help='no progress')
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Write, check, and print what was written."""
    from ..checkpoints.io import check_finite, check_target
    from ..deploy.quantize import image_batches
    from ..deploy.runtimes import RUNTIMES, export_runtime

    check_input(args.input)
    runtimes = {kind.suffixes[0]: name for name, kind in RUNTIMES.items()}
    if args.out.suffix not in runtimes:
        raise UsageError(f'--out {args.out} does not tell the runtime; end it in {", ".join(sorted(runtimes))}.')
    runtime = runtimes[args.out.suffix]
    if runtime != 'onnxruntime' and (args.no_optimize or args.int8 or args.batch == 'dynamic'):
        raise UsageError(f'--no-optimize, --int8 and --batch dynamic are for .onnx files, not for {runtime}.')
    if args.native and runtime not in ('onnxruntime', 'torch_export'):
        raise UsageError(f'--native is for .onnx and .pt2 files, not for {runtime}.')
    if args.native and (args.no_optimize or args.int8):
        raise UsageError('--native rewrites the model and leaves nothing to quantise; give it without --no-optimize '
                         'and --int8.')  # fmt: skip
    if not args.out.is_dir() or runtime != 'coreml':
        check_target(args.out)
    source = open_model(args.model, args)
    model, size = source.model, source.input_size
    check_finite(model.state_dict(), args.model)
    images = image_batches(args.int8, (args.batch or 'dynamic', *size), model.pretrained_cfg) if args.int8 else None
    if runtime == 'onnxruntime':
        report, quantised = _write_onnx(model, size, images, args)
    else:
        report = export_runtime(model, runtime, args.out, size, args.batch or 1, args.tolerance, None, args.native)
    megabytes = ['MB', f'{report.size / 1e6:.2f}']
    if runtime == 'onnxruntime':
        nodes = ', '.join(f'{count} {name}' for name, count in sorted(report.operators.items()))
        rows = [['file', args.out], megabytes, ['opset', report.opset], ['nodes', nodes]]
    else:
        rows = [['files', ', '.join(map(str, report.paths))], megabytes]
    checked = 'not run here' if report.verification is None else f'{report.verification.max_rel:.2e}'
    rows.append(['max relative difference', checked])
    if report.forms and not args.native:
        rows.append(['implementations', f'chosen for {len(report.forms)} layers, see --forms'])
    print_table('Export', ['', source.name], rows, args.markdown)
    if args.forms and report.forms:
        print_table('Implementations', ['layer', 'implementation'], sorted(report.forms.items()), args.markdown)
    if images:
        rows = [
            ['file', _int8_path(args.out)],
            ['MB', f'{quantised.size / 1e6:.2f}'],
            ['calibration images', quantised.images],
            ['same class as float32', f'{quantised.agreement:.1%}'],
            ['relative difference', f'{quantised.max_rel:.2e}'],
        ]
        print_table('int8', ['', source.name], rows, args.markdown)


def _write_onnx(model, size, images, args: argparse.Namespace):
    """Write the file, and the quantised one beside it where there are images; neither appears without the other."""
    from ..checkpoints.io import staged
    from ..deploy import export_onnx
    from ..deploy.quantize import quantize_onnx

    with staged(args.out, *([_int8_path(args.out)] if images else [])) as (path, *quantised):
        report = export_onnx(
            model, path, size, args.batch or 'dynamic', not args.no_optimize, args.tolerance, native=args.native,
        )  # fmt: skip
        return report, quantize_onnx(path, quantised[0], images) if images else None


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of at least 0')
    return value


def _int8_path(path: Path) -> Path:
    return path.with_stem(f'{path.stem}-int8')

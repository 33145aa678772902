"""``cnv2 deploy``: condense a trained checkpoint, prove that nothing changed, and write it."""

import argparse
from pathlib import Path
from typing import Union

from ._deployed import load_exactly, print_report
from ._usage import UsageError, check_input

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 deploy``."""
    parser.add_argument(
        'files', nargs='+', metavar='FILE',
        help='trained checkpoint of a timm model, or OpenMMLab config (file or cnv2_plugin::NAME) and checkpoint',
    )  # fmt: skip
    parser.add_argument('--arch', help='timm name, such as condensenetv2_a; needed without a config')
    parser.add_argument('--model-kwargs', type=_keyword, nargs='*', default=[], metavar='KEY=VALUE',
                        help='further timm.create_model arguments, such as in_chans=1')  # fmt: skip
    parser.add_argument('--out', required=True, help='file to write; ends in .pth or .safetensors')
    parser.add_argument('--onnx', help='ONNX file to write too')
    parser.add_argument(
        '--input', nargs=3, type=int, metavar=('C', 'H', 'W'), help='input size; by default the published'
    )
    parser.add_argument('--batch', type=_batch, default='dynamic', help="batch size of the ONNX file, or 'dynamic'")
    parser.add_argument('--tolerance', type=float, default=1e-5, help='largest relative difference that is accepted')
    parser.add_argument(
        '--no-ema', action='store_true', help='take the raw weights where the file has averaged ones too'
    )
    parser.add_argument(
        '--classifier-keep', type=float,
        help="share of the classifier's inputs to keep, such as 0.5 (CondenseNet's lossy step; all by default)",
    )  # fmt: skip
    parser.add_argument('--trust', action='store_true', help='unpickle the checkpoint; only for files you trust')


def run(args: argparse.Namespace) -> None:
    """Condense, verify, write, and print what changed."""
    *config, args.checkpoint = args.files
    if len(config) > 1 or bool(config) == bool(args.arch):
        raise UsageError('give a checkpoint and --arch NAME, or a config and a checkpoint without --arch.')
    check_input(args.input)
    if args.onnx:
        _check_output(args.onnx, ('.onnx',))
    if config:
        _check_output(args.out, ('.pth',))
        if args.classifier_keep is not None or args.model_kwargs:
            raise UsageError('--classifier-keep and --model-kwargs are for timm models; a config says it all itself.')
        from . import _deploy_config

        _deploy_config.run(args, config[0], args.checkpoint)
    else:
        _check_output(args.out, ('.pth', '.pt', '.safetensors'))
        _deploy_timm(args)


def _deploy_timm(args: argparse.Namespace) -> None:
    from ..checkpoints import find_state_dict, load_checkpoint, save_checkpoint
    from ..checkpoints.io import check_finite, check_target
    from ..deploy import classifier_cost, condense, export_onnx, verify

    state_dict = find_state_dict(load_checkpoint(args.checkpoint, args.trust), use_ema=not args.no_ema)
    check_finite(state_dict, args.checkpoint)
    model = build_for(state_dict, args.arch, dict(args.model_kwargs)).eval()
    input_size = tuple(args.input or model.pretrained_cfg['input_size'])
    input_size = (model.in_chans, *input_size[1:])
    condensed = condense(model)
    report = verify(model, condensed, input_size)
    report.check(args.tolerance, 'the condensed model')
    meta = dict(arch=args.arch, model_kwargs=dict(args.model_kwargs), num_classes=model.num_classes, deploy=True)
    lossy = []
    if args.classifier_keep is not None:
        dropped = classifier_cost(condensed, args.classifier_keep)
        whole, condensed = condensed, condense(condensed, classifier_keep=args.classifier_keep)
        loss = verify(whole, condensed, input_size, num_inputs=8, batch_size=4)
        meta['model_kwargs']['classifier_keep'] = args.classifier_keep
        lossy = [
            ['classifier inputs kept', f'{dropped.inputs:,}', f'{dropped.kept:,}'],
            ['L1 norm of the classifier dropped', '', f'{dropped.dropped_l1:.1%}'],
            ['max relative difference by that', '', f'{loss.max_rel:.2e}'],
            [f'same top-1 class ({loss.num_inputs} random images)', '', f'{loss.argmax_agreement:.1%}'],
        ]
    differences, onnx_sizes = [report.max_rel], []
    if args.onnx:
        check_target(args.out)
        exported = export_onnx(condensed, args.onnx, input_size, args.batch, tolerance=args.tolerance)
        differences.append(exported.verification.max_rel)
        onnx_sizes = [exported.size]
    save_checkpoint(condensed.state_dict(), args.out, meta)
    sizes = [Path(args.checkpoint).stat().st_size, Path(args.out).stat().st_size, *onnx_sizes]
    print_report(model, condensed, input_size, sizes, differences, lossy)


def build_for(state_dict: dict, arch: str, model_kwargs: dict):
    """The timm model in training form that a state dict was trained with, loaded strictly.

    Raises:
        ValueError: the state dict does not fit the arch, or is condensed already.
    """
    import timm

    from ..archs import find_variant

    if arch not in timm.list_models():
        find_variant(arch)
    if 'classifier.weight' in state_dict:
        model_kwargs = dict(num_classes=len(state_dict['classifier.weight']), **model_kwargs)
    try:
        model = timm.create_model(arch, **model_kwargs)
    except TypeError as error:
        raise ValueError(f'{arch} cannot be built: {error}; check --model-kwargs.') from error
    load_exactly(model, state_dict, arch, '--arch and --model-kwargs')
    return model


def _check_output(path: str, suffixes: tuple[str, ...]) -> None:
    path = Path(path)
    if path.suffix not in suffixes:
        raise UsageError(
            f'{path} ends in {path.suffix or "nothing"}; give a name that ends in {" or ".join(suffixes)}.'
        )
    if not path.parent.is_dir():
        raise ValueError(f'the folder {path.parent} of {path.name} does not exist; make it first.')


def _batch(text: str) -> Union[int, str]:
    if text != 'dynamic' and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'dynamic' nor a whole number of at least 1")
    return text if text == 'dynamic' else int(text)


def _keyword(text: str) -> tuple[str, object]:
    import ast

    key, equals, value = text.partition('=')
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value

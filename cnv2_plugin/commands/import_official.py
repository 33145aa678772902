"""``cnv2 import-official``: a file that the authors released, as a checkpoint of ours."""

import argparse
import json
from pathlib import Path

from ._usage import add_weights_options, check_output, check_paths, keyword, weights_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', help='released file, in training or converted form')
    parser.add_argument('--out', required=True, help='training form to write; ends in .pth or .safetensors')
    parser.add_argument('--deploy-out', help='deployed form to write too; ends in .pth or .safetensors')
    add_weights_options(parser)
    parser.add_argument(
        '--arch', type=_field, nargs='*', default=[], metavar='NAME=VALUE',
        help='what the file does not tell of the shape, such as hswish_from=3 stem_stride=2 (none: hswish_from=None)',
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Import, prove that both forms agree, write, and print what the file is."""
    from ..checkpoints import CheckpointError, load_checkpoint, save_checkpoint
    from ..checkpoints.io import staged
    from ..checkpoints.official import import_official_state_dict

    outs = [Path(out) for out in (args.out, args.deploy_out) if out]
    for out in outs:
        check_output(out)
    check_paths(outs, [args.file])
    checkpoint = load_checkpoint(args.file, args.trust)
    try:
        imported = import_official_state_dict(weights_of(checkpoint, args), checkpoint.get('args'), **dict(args.arch))
    except CheckpointError as error:
        raise CheckpointError(f'{args.file}: {error}') from error
    deployed = imported.deployed_state_dict() if imported.finished or args.deploy_out else None
    difference = _prove(imported, deployed)
    forms = ((imported.state_dict, imported.model_kwargs), (deployed, imported.deploy_kwargs))
    with staged(*outs) as temporaries:
        for temporary, (state_dict, kwargs) in zip(temporaries, forms):
            meta = dict(model_name=imported.model_name, model_kwargs=json.dumps(kwargs), source=Path(args.file).name)
            save_checkpoint(state_dict, temporary, meta)
    print(f'model: {imported.model_name}')
    print(f'arguments: {", ".join(f"{key}={value}" for key, value in imported.model_kwargs.items())}')
    print(f'form of the file: {imported.form}')
    print(f'pruning stages done: {imported.stage}{" (finished)" if imported.finished else ""}')
    if imported.classifier_keep is not None:
        print(f'inputs that the classifier reads: {imported.classifier_keep:.0%}')
    if difference is not None:
        print(f'max relative difference of the deployed form: {difference:.2e}')
    print(f'written: {", ".join(map(str, outs))}')


def _prove(imported, deployed):
    """Load both forms strictly and compare their logits; None where timm is missing or pruning is not finished."""
    from importlib.util import find_spec

    if find_spec('timm') is None:
        return None
    import timm

    from ..deploy import verify

    model = timm.create_model(imported.model_name, **imported.model_kwargs)
    model.load_state_dict(imported.state_dict)
    if deployed is None:
        return None
    candidate = timm.create_model(imported.model_name, **imported.deploy_kwargs)
    candidate.load_state_dict(deployed)
    size = 64 * imported.arch.stem_stride
    report = verify(model.eval(), candidate.eval(), (model.in_chans, size, size), exact=True)
    report.check(1e-5, 'the deployed form')
    return report.max_rel


def _field(text: str) -> tuple[str, object]:
    name, value = keyword(text)
    if isinstance(value, str):
        raise argparse.ArgumentTypeError(f'{value!r} is no number, None or list of numbers')
    return name, value

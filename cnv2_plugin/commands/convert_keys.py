"""``cnv2 convert-keys``: move weights between timm, mmpretrain and mmdet."""

import argparse
from pathlib import Path

from ._usage import add_weights_options, check_paths, weights_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, help='checkpoint of a timm, mmpretrain or mmdet model')
    parser.add_argument('target', type=Path, help='file to write (.pth or .safetensors)')
    parser.add_argument(
        '--to', required=True, choices=('timm', 'mmpretrain', 'backbone'),
        help='names of the target; backbone: the trunk alone, for init_cfg=dict(type="Pretrained")',
    )  # fmt: skip
    add_weights_options(parser)


def run(args: argparse.Namespace) -> None:
    from ..checkpoints import load_checkpoint, save_checkpoint
    from ..toolkits.key_map import convert_keys

    check_paths([args.target], [args.source])
    state_dict = weights_of(load_checkpoint(args.source, args.trust), args)
    renamed, dropped = convert_keys(state_dict, args.to)
    save_checkpoint(renamed, args.target)
    print(f'{args.target}: {len(renamed)} tensors with the names of {args.to}.')
    if dropped:
        shown = ', '.join(dropped[:4]) + (', ...' if len(dropped) > 4 else '')
        print(f'Left out, as {args.to} has no place for them: {len(dropped)} tensors ({shown}).')

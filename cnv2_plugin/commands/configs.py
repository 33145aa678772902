"""``cnv2 configs``: the configs that travel with the package, as a list or copied into a folder."""

import argparse
import ast
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from ..config_files import MIM, PACKAGE, config_names, config_path
from ._output import print_table
from ._usage import UsageError, check_paths

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pattern', nargs='?', metavar='PATTERN',
                        help='part of the name, or a pattern with * and ?; with --copy the name of one')  # fmt: skip
    parser.add_argument('--copy', metavar='DIR', help='folder to copy the config into; its bases stay in the package')
    parser.add_argument('--overwrite', action='store_true', help='replace a file of that name')


def run(args: argparse.Namespace) -> None:
    if args.copy is None:
        if args.overwrite:
            raise UsageError('--overwrite goes with --copy DIR.')
        _list(args.pattern or '*', args.markdown)
        return
    if args.pattern is None:
        raise UsageError('--copy DIR takes the name of one config in front: cnv2 configs NAME --copy DIR.')
    print(f'{copy_config(args.pattern, Path(args.copy), args.overwrite)} is ready: cnv2 train takes it, and so do the '
          f"toolkits' own scripts.")  # fmt: skip


def copy_config(name: str, folder: Path, overwrite: bool = False) -> Path:
    """Copy a config of the package so that it works in any folder.

    Its bases of the package are named ``cnv2_plugin::...``, in an expression that imports the package, as scripts of
    the toolkits import it too late.
    """
    from ..checkpoints import atomic_path

    source = config_path(name)
    target = folder / source.name
    if target.exists() and not overwrite:
        raise ValueError(f'{target} is there already; give another folder, or replace it with --overwrite.')
    check_paths([target], [source])
    place = PurePosixPath(source.relative_to(MIM / 'configs').as_posix())
    text = with_package_bases(source.read_text(), place)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(f'# A copy of {PACKAGE}::{place}; what it inherits stays in the package.\n{text}')
    return target


def with_package_bases(text: str, place: PurePosixPath) -> str:
    """Name the relative bases in the text of a config, whose path below ``configs`` is ``place``, by the package."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
            bases = ast.literal_eval(node.value)
            one = isinstance(bases, str)
            named = [
                repr(base if '::' in base else f'{PACKAGE}::{normpath(place.parent / base)}')
                for base in ([bases] if one else bases)
            ]
            value = named[0] if one else '[\n' + ''.join(f'    {base},\n' for base in named) + ']'
            lines = text.splitlines(keepends=True)
            lines[node.lineno - 1 : node.end_lineno] = [f"_base_ = __import__('{PACKAGE}') and {value}\n"]
            return ''.join(lines)
    return text


def _list(pattern: str, markdown: bool) -> None:
    wanted = pattern.rpartition('::')[2]
    if not set('*?[') & set(wanted):
        wanted = f'*{wanted}*'
    names = [name for name in config_names() if fnmatch(name, wanted) or fnmatch(PurePosixPath(name).name, wanted)]
    if not names:
        config_path(pattern)
    figures = _figures()
    rows = [[name, *(f'{figures[name][key] / 1e6:.3f}' if key in figures.get(name, {}) else '-'
                     for key in ('Parameters', 'FLOPs'))] for name in names]  # fmt: skip
    print_table(f'Configs, to be named {PACKAGE}::CONFIG', ['config', 'params (M)', 'mult-adds (M)'], rows, markdown)


def _figures() -> dict[str, dict[str, Any]]:
    """Read the metadata of each config: ``Parameters``, and multiply-adds as ``FLOPs``, both after pruning."""
    import yaml

    metafiles = (MIM / 'configs').glob('*/metafile.yml')
    models = [model for path in metafiles for model in yaml.safe_load(path.read_text())['Models']]
    return {model['Config'].partition('/')[2]: model.get('Metadata', {}) for model in models}

# PYTHON_ARGCOMPLETE_OK
"""``cnv2 <command>``: works from an installed package, inside or outside a checkout."""

import argparse
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Optional

from . import __version__, commands
from .commands._tables import tables_as_json
from .commands._usage import UsageError

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError)
"""Errors whose message says what was wrong; anything else is a defect and shows its traceback."""


EXTRAS = {
    'timm': ('timm',),
    'openmmlab': ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'yaml'),
    'deploy': ('onnx', 'onnxscript', 'onnxruntime', 'safetensors'),
    'lightning': ('lightning',),
    'transformers': ('transformers', 'accelerate'),
    'analysis': ('argcomplete', 'matplotlib', 'rich', 'jinja2', 'tqdm', 'fvcore', 'sklearn'),
}
"""Packages by the extra that installs them."""


def command_names() -> list[str]:
    """Names that ``cnv2`` takes, as typed."""
    return sorted(module.name.replace('_', '-') for module in iter_modules(commands.__path__) if module.name[0] != '_')


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``cnv2`` with one subcommand for each module of ``commands``."""
    parser = argparse.ArgumentParser(prog='cnv2', description='Tools for CondenseNetV2 and its relatives.')
    parser.add_argument('--version', action='version', version=f'cnv2_plugin {__version__}')
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name in command_names():
        module = import_module(f'{commands.__name__}.{name.replace("-", "_")}')
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
        if getattr(module, 'PRINTS_TABLES', False):
            subparser.add_argument('--json', action='store_true', help='print the tables as JSON, and nothing else')
        subparser.add_argument('--debug', action='store_true', help='show the traceback of an error')
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    """Run a command.

    Returns:
        0 for success, 1 for a failure and 2 for wrong usage, each told in one sentence; what the parser finds wrong
        exits with 2.
    """
    parser = build_parser()
    complete(parser)
    args = parser.parse_args(argv)
    as_json = getattr(args, 'json', None) is True
    try:
        with tables_as_json(args.command) if as_json else nullcontext():
            return args.run(args) or 0
    except KeyboardInterrupt:
        print('cnv2: interrupted', file=sys.stderr)
        return 130
    except EXPECTED as error:
        if args.debug:
            raise
        message = _message(error)
        print(f'cnv2 {args.command}: {" ".join(message.split())}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell's request for completions, where argcomplete is installed and the shell asks."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    argcomplete.autocomplete(parser)


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split('.')[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        wanted = _with_extra(extra) if extra else package
        return f'{package} is not installed, and this command needs it; run: pip install {wanted}.'
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        where = f'{error.filename}: ' if error.filename else ''
        return f'{where}{error.strerror}; check the path, its permissions and the free space, then try again.'
    return str(error)


def _with_extra(extra: str) -> str:
    """What pip is to install: the checkout, or the installed package."""
    if (Path(__file__).parents[1] / 'setup.py').is_file():
        return f'-e ".[{extra}]" (in the checkout of cnv2_plugin)'
    return f'"cnv2_plugin[{extra}]"'


if __name__ == '__main__':
    sys.exit(main())

# PYTHON_ARGCOMPLETE_OK
"""``cnv2 <command>``: works from an installed package, inside or outside a checkout."""

import argparse
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from . import __version__
from .commands._output import tables_as_json
from .commands._usage import UsageError, check_input
from .interrupt import raise_at_interrupt, tell_interrupted, was_interrupted

EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError)
"""Errors whose message says what was wrong; anything else is a defect and shows its traceback."""

COMMANDS = {
    'benchmark': 'compare the latency of a model as trained, condensed, lowered and native, in several runtimes',
    'configs': 'list the configs that travel with the package, or copy one into a folder',
    'convert-keys': 'rename the keys of a checkpoint for timm, mmpretrain, or as a bare backbone',
    'cost': 'count parameters and multiply-adds of a variant, of the parts of a config, or beside published figures',
    'deploy': 'condense a finished model, verify it, and write it: checkpoint, ONNX, OpenVINO, ExecuTorch, ncnn, ...',
    'env': 'list what is installed here: toolkits, native kernels and instruction set, runtimes',
    'export': 'another name for deploy',
    'heatmap': 'draw which older features each layer reads (LGC) and reactivates (SFR), for one model or two',
    'import-official': "turn a file that the papers' authors released into a checkpoint of ours, exactly",
    'predict': 'answer for images with a deployed ONNX file, without PyTorch',
    'report': 'write one self-contained HTML page: shapes, cost, sparsity, maps, training curve, deployment, latency',
    'run': 'run a script with our models registered and, where asked, its training sparsified',
    'sparsity': 'report kept weights, features that are never reused or never reactivated, and how often others are',
    'test': 'evaluate a checkpoint of an MMPretrain or MMDetection config',
    'train': 'train an MMPretrain or MMDetection config',
}
"""Help by command; the module in ``commands`` is imported only when its command is asked for."""

EXTRAS = {
    'timm': ('timm',),
    'openmmlab': ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'yaml'),
    'deploy': ('onnx', 'onnxscript', 'onnxruntime', 'safetensors'),
    'lightning': ('lightning',),
    'transformers': ('transformers', 'accelerate'),
    'analysis': ('argcomplete', 'matplotlib', 'rich', 'jinja2', 'tqdm', 'fvcore', 'sklearn'),
}
"""Packages by the extra that installs them."""


def build_parser(only: Optional[str] = None) -> argparse.ArgumentParser:
    """Build the parser of ``cnv2``.

    Args:
        only: command whose options are added; by default those of all commands, which imports them all.
    """
    parser = argparse.ArgumentParser(prog='cnv2', description='Tools for CondenseNetV2 and its relatives.')
    parser.add_argument('--version', action='version', version=f'cnv2_plugin {__version__}')
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if only not in (None, name):
            continue
        module = import_module(f'.commands.{name.replace("-", "_")}', __package__)
        module.add_arguments(subparser)
        if getattr(module, 'PRINTS_TABLES', False):
            subparser.add_argument('--json', action='store_true', help='print the tables as JSON, and nothing else')
            subparser.add_argument('--markdown', action='store_true', help='print the tables as Markdown')
        subparser.add_argument('--debug', action='store_true', help='show the traceback of an error')
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Optional[list[str]] = None) -> int:
    """Run a command.

    Returns:
        0 for success, 1 for a failure and 2 for wrong usage, each told in one sentence; what the parser finds wrong
        exits with 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    _mend_streams()
    if '_ARGCOMPLETE' in os.environ and find_spec('argcomplete'):
        import_module('argcomplete').autocomplete(build_parser())
    args = build_parser(next(iter(argv), '')).parse_args(argv)
    raise_at_interrupt()
    try:
        _check_encoding(argv)
        check_input(getattr(args, 'input', None))
        with tables_as_json(args.command) if getattr(args, 'json', None) is True else nullcontext():
            ended = args.run(args) or 0
        sys.stdout.flush()
        return ended
    except KeyboardInterrupt:
        return tell_interrupted()
    except BrokenPipeError:  # whoever read what is printed has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if was_interrupted(error):
            return tell_interrupted()
        if args.debug or not isinstance(error, EXPECTED):
            raise
        print(f'cnv2 {args.command}: {" ".join(_message(error).split())}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _mend_streams() -> None:
    """Let what is printed go nowhere where a stream is closed, and escape what its encoding lacks."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, 'w'))
        elif hasattr(stream, 'reconfigure') and stream.errors == 'strict':
            stream.reconfigure(errors='backslashreplace')


def _check_encoding(argv: list[str]) -> None:
    """Raise where the locale cannot tell the letters of an argument, which libraries take in UTF-8 only."""
    wrong = next((text for text in argv if any('\ud800' <= letter <= '\udfff' for letter in text)), None)
    if wrong is not None:
        raise UsageError(
            f'{ascii(wrong)} has letters that the locale of this shell does not know; set PYTHONUTF8=1 (or a UTF-8 '
            f'locale, such as LC_ALL=C.UTF-8) and try again.'
        )


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split('.')[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        wanted = f'"cnv2_plugin[{extra}]"' if extra else package
        if extra and (Path(__file__).parents[1] / 'setup.py').is_file():
            wanted = f'-e ".[{extra}]" (in the checkout of cnv2_plugin)'
        return f'{package} is not installed, and this command needs it; run: pip install {wanted}.'
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        where = f'{error.filename}: ' if error.filename else ''
        return f'{where}{error.strerror}; check the path, its permissions and the free space, then try again.'
    return str(error)


if __name__ == '__main__':
    sys.exit(main())

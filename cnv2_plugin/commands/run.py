"""``cnv2 run``: run a training script of somebody else, unchanged, with our models and staged sparsification."""

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from ._output import is_first_process
from ._usage import UsageError

EPOCH_OPTIONS = ('--epochs', '--num-epochs', '--num_epochs', '--max-epochs', '--max_epochs', '--num_train_epochs')
"""Options of scripts that say how many epochs they train."""
_OURS = (__file__, runpy.__file__, '<frozen runpy')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 run``; all that follows the script belongs to the script."""
    parser.add_argument('-m', '--module', action='store_true', help='the script is a module, as in python -m')
    group = parser.add_argument_group(
        'sparsification',
        'any of these switches it on for the model that the script trains; it needs --total-steps, or '
        '--steps-per-epoch with epochs',
    )
    group.add_argument('--sparse-fraction', type=float, help='share of the training in which stages happen (0.5)')
    group.add_argument('--start', type=float, help='share of the training before the first stage (0)')
    group.add_argument('--group-lasso', type=float, metavar='WEIGHT', help='weight of the group lasso (0)')
    group.add_argument('--total-steps', type=int, metavar='N', help='optimiser steps of the whole training')
    group.add_argument('--steps-per-epoch', type=int, metavar='N', help='optimiser steps of one epoch')
    group.add_argument(
        '--epochs', type=int, metavar='N', help="epochs of the whole training; by default the script's own --epochs"
    )
    parser.add_argument('script', help='path of the script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the script')


def run(args: argparse.Namespace) -> int:
    """Run the script; with sparsification the exit code is 1 where nothing was there to sparsify."""
    from ..sparsify.attach import SparsificationError, SparsifiedScript

    options = _options(args)
    if options is None:
        return run_script(args.script, args.arguments, args.module)
    ended: Any = 0
    with SparsifiedScript(on_change=_report, **options) as found:
        try:
            ended = run_script(args.script, args.arguments, args.module)
        except SystemExit as exit_:
            ended = exit_.code
    if found.sparsifier is None and ended in (0, None):
        raise SparsificationError(
            f'{args.script} made no optimiser step with a model that has group-sparse layers in training form, so '
            f'nothing was sparsified; train one of our models (or one changed by to_learned_groups), not deployed.'
        )
    if found.sparsifier is not None and not found.sparsifier.finished:
        _say(
            f'the script ended after {found.sparsifier.steps_done} of {found.sparsifier.total_steps} steps, before the '
            f'last stage; resume it, or tell its true length by --total-steps'
        )
    sys.exit(ended)


def run_script(script: str, arguments: Sequence[str], is_module: bool = False) -> int:
    """Run a script, or a module, as ``python`` would: as ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``.

    Returns 0, or 1 after an uncaught exception, whose traceback is printed; ``SystemExit`` and errors of the
    sparsification pass.
    """
    from ..sparsify.attach import SparsificationError

    if not is_module and not Path(script).exists():
        raise UsageError(f'there is no script {script}; give the path of a file, or -m and the name of a module.')
    argv, path = sys.argv, sys.path[0]
    sys.argv = [script, *arguments]
    sys.path[0] = os.getcwd() if is_module else str(Path(script).resolve().parent)
    try:
        if is_module:
            runpy.run_module(script, run_name='__main__', alter_sys=True)
        else:
            runpy.run_path(script, run_name='__main__')
        return 0
    except (KeyboardInterrupt, SparsificationError):
        raise
    except Exception as error:
        traceback = error.__traceback__
        while traceback and traceback.tb_next and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        return 1
    finally:
        sys.argv, sys.path[0] = argv, path


def epochs_of(arguments: Sequence[str]) -> Optional[int]:
    """Return the epochs that a command line names, None where it names none."""
    found = None
    for option, following in zip(arguments, [*arguments[1:], '']):
        name, _, value = option.partition('=')
        if name in EPOCH_OPTIONS:
            value = value or following
            found = int(value) if value.isdecimal() else None
    return found


def _options(args: argparse.Namespace) -> Optional[dict[str, Any]]:
    """Options of the sparsifier, None where none was given."""
    from ..sparsify import SparsificationSchedule

    options = {name: getattr(args, name) for name in ('sparse_fraction', 'start', 'group_lasso')}
    lengths = {name: getattr(args, name) for name in ('total_steps', 'steps_per_epoch', 'epochs')}
    if not any(value is not None for value in (*options.values(), *lengths.values())):
        return None
    options = {name: value for name, value in options.items() if value is not None}
    for name, value in lengths.items():
        if value is not None and value < 1:
            raise UsageError(f'--{name.replace("_", "-")} is {value}; it takes a number of at least 1.')
    if options.get('group_lasso', 0) < 0:
        raise UsageError(f'--group-lasso is {options["group_lasso"]}; it takes a weight of at least 0.')
    try:
        SparsificationSchedule(options.get('sparse_fraction', 0.5), options.get('start', 0.0))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return dict(options, total_steps=_total_steps(args), steps_per_epoch=args.steps_per_epoch)


def _total_steps(args: argparse.Namespace) -> int:
    if args.total_steps is not None:
        if args.steps_per_epoch is not None or args.epochs is not None:
            raise UsageError('--total-steps is the whole length; give it without --epochs and --steps-per-epoch.')
        return args.total_steps
    epochs = args.epochs or epochs_of(args.arguments)
    if epochs is None or args.steps_per_epoch is None:
        wanted = 'steps of an epoch are unknown' if epochs else f'arguments of {args.script} name no --epochs'
        raise UsageError(
            f'the length of the training is unknown, as the {wanted}; give --steps-per-epoch (and --epochs, where the '
            f'script does not take it), or --total-steps, before {args.script}. Steps of an epoch are its training '
            f'images / (batch size x processes x accumulated batches), rounded down where the loader drops the last '
            f'batch, up otherwise; total steps are that times the epochs.'
        )
    return epochs * args.steps_per_epoch


def _report(sparsifier: Any) -> None:
    stages = max(layer.num_stages for layer in sparsifier.layers.values())
    _say(
        f'after {sparsifier.steps_done} of {sparsifier.total_steps} steps: stage {sparsifier.stage} of {stages}, '
        f'{sparsifier.sparsity()["total"]:.1%} of the prunable weights kept'
    )


def _say(text: str) -> None:
    """Print a line, by the first process only."""
    if is_first_process():
        print(f'cnv2 run: {text}', file=sys.stderr, flush=True)

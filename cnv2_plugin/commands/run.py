"""``cnv2 run``: run a training script of somebody else, unchanged, with our models and staged sparsification."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Optional

from ._output import is_first_process
from ._usage import UsageError

EPOCH_OPTIONS = ('--epochs', '--num-epochs', '--num_epochs', '--max-epochs', '--max_epochs', '--num_train_epochs')
"""Options of scripts that say how many epochs they train."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cnv2 run``; all that follows the script belongs to the script."""
    parser.add_argument('-m', '--module', action='store_true', help='the script is a module, as in python -m')
    group = parser.add_argument_group(
        'sparsification', 'any of these switches it on for the model that the script trains'
    )
    group.add_argument('--sparse-fraction', type=float, help='share of the training in which stages happen (0.5)')
    group.add_argument('--start', type=float, help='share of the training before the first stage (0)')
    group.add_argument('--spacing', choices=('even', 'cubic'), help='of the stages (even)')
    group.add_argument('--group-lasso', type=float, metavar='WEIGHT', help='weight of the group lasso (0)')
    length = group.add_mutually_exclusive_group()
    length.add_argument('--total-steps', type=int, metavar='N', help='optimiser steps of the whole training')
    length.add_argument(
        '--epochs', type=int, metavar='N', help="epochs of the whole training; by default the script's own --epochs"
    )
    parser.add_argument('script', help='path of the script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the script')


def run(args: argparse.Namespace) -> int:
    """Run the script; with sparsification the exit code is 1 where nothing was there to sparsify."""
    from ..sparsify.outside import SparsificationError, sparsified_from_outside
    from ._script import run_script

    options = _options(args)
    if options is None:
        return run_script(args.script, args.arguments, args.module)
    ended: Any = 0
    with sparsified_from_outside(on_change=_report, **options) as outside:
        try:
            ended = run_script(args.script, args.arguments, args.module)
        except SystemExit as exit_:
            ended = exit_.code
    if outside.sparsifier is None and ended in (0, None):
        raise SparsificationError(
            f'{args.script} made no two optimiser steps with a model that has group-sparse layers in training form, so '
            f'nothing was sparsified; train one of our models (or one changed by to_learned_groups), not deployed.'
        )
    if outside.sparsifier is not None:
        _report_end(outside.sparsifier)
    sys.exit(ended)


def epochs_of(arguments: Sequence[str]) -> Optional[int]:
    """Epochs that a command line names, None where it names none."""
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

    names = ('sparse_fraction', 'start', 'spacing', 'group_lasso', 'total_steps', 'epochs')
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not options:
        return None
    for name in ('total_steps', 'epochs'):
        if options.get(name, 1) < 1:
            raise UsageError(f'--{name.replace("_", "-")} is {options[name]}; it takes a number of at least 1.')
    if options.get('group_lasso', 0) < 0:
        raise UsageError(f'--group-lasso is {options["group_lasso"]}; it takes a weight of at least 0.')
    try:
        SparsificationSchedule(
            options.get('sparse_fraction', 0.5), options.get('start', 0.0), options.get('spacing', 'even')
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if 'total_steps' not in options and 'epochs' not in options:
        options['epochs'] = epochs_of(args.arguments)
        if not options['epochs']:
            raise UsageError(
                f'the length of the training is unknown, as the arguments of {args.script} name no --epochs; give '
                f'--epochs or --total-steps before {args.script}.'
            )
    return options


def _report(outside: Any) -> None:
    """One line for each stage, by the first process only."""
    sparsifier = outside.sparsifier
    stages = max(layer.num_stages for layer in sparsifier.layers.values())
    _say(
        f'after {sparsifier.steps_done} of {sparsifier.total_steps} steps: stage {sparsifier.stage} of {stages}, '
        f'{sparsifier.sparsity()["total"]:.1%} of the prunable weights kept'
    )


def _report_end(sparsifier: Any) -> None:
    if not sparsifier.finished:
        _say(
            f'the script ended after {sparsifier.steps_done} of {sparsifier.total_steps} steps, before the last stage; '
            f'resume it, or tell its true length by --total-steps'
        )


def _say(text: str) -> None:
    if is_first_process():
        print(f'cnv2 run: {text}', file=sys.stderr, flush=True)

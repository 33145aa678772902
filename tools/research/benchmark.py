"""``cnv2 benchmark`` with what only research measures: the authors' form, and with ``--train`` steps of training.

``python tools/research/benchmark.py --forms authors condensed`` takes every option of ``cnv2 benchmark``;
``python tools/research/benchmark.py --train`` measures time and memory of training steps.
"""

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm  # noqa: E402

import cnv2_plugin.toolkits  # noqa: E402, F401  (registers the models)
from cnv2_plugin.benchmark import machine  # noqa: E402
from cnv2_plugin.benchmark.forms import FORMS  # noqa: E402
from cnv2_plugin.commands import benchmark  # noqa: E402
from cnv2_plugin.commands._output import print_table, progress_printer, write_json  # noqa: E402
from cnv2_plugin.commands._usage import UsageError  # noqa: E402
from tools.research.authors_form import authors  # noqa: E402
from tools.research.train_cost import StepCost, training_cost  # noqa: E402

OF_INFERENCE = ('forms', 'runtimes', 'peers', 'checkpoint', 'memory', 'roofline', 'scaling', 'files', 'png')


def main(argv: Optional[list[str]] = None) -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmark.add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        if args.train:
            check_training(args)
            with redirect_stdout(sys.stderr) if args.json == '-' else nullcontext():
                content = run_train(args)
            if args.json:
                write_json(args.json, content)
            return 0
        FORMS.setdefault('authors', authors)
        benchmark.run(args)
        return 0
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f'benchmark: {error}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def check_training(args: argparse.Namespace) -> None:
    """Refuse what only inference has, and take the one batch size and number of threads.

    Raises:
        UsageError: an option of inference is given, or several batch sizes or numbers of threads.
    """
    values = {name: getattr(args, name, None) for name in OF_INFERENCE}
    given = [f'--{name}' for name, value in values.items() if value is not None and value is not False]
    given += [f'several values of --{name}' for name in ('batch', 'threads') if len(getattr(args, name)) > 1]
    if given:
        raise UsageError(
            f'--train measures training steps and does not take {", ".join(given)}; leave that out, or --train.'
        )
    args.batch, args.threads = args.batch[0], args.threads[0]


def run_train(args: argparse.Namespace) -> dict:
    """Measure training steps, print the table and return the figures."""
    costs = training_cost(
        {name: timm.create_model(name) for name in args.models}, tuple(args.input_size), args.batch, args.threads,
        args.rounds, min(args.warmup, 2), progress=progress_printer(args.quiet),
    )  # fmt: skip
    _print(costs, args)
    return {'machine': machine(), 'training': [cost.as_dict() for cost in costs]}


def _print(costs: list[StepCost], args: argparse.Namespace) -> None:
    size = 'x'.join(map(str, args.input_size))
    title = f'Training step at {size}, batch {args.batch}, {args.threads} thread(s), {args.rounds} interleaved rounds'
    header = [
        'model', 'form', 'memory format', 'processor s', 'times faster than masked', 'peak MB', 'checkpointed MB',
        'share',
    ]  # fmt: skip
    rows = [
        [
            c.model, c.form, c.memory_format, f'{c.seconds:.3f}', f'{c.ratio:.2f}', f'{c.peak_bytes / 1e6:.0f}',
            f'{c.peak_bytes_checkpointed / 1e6:.0f}', f'{c.peak_bytes_checkpointed / c.peak_bytes:.2f}',
        ]
        for c in costs
    ]  # fmt: skip
    print_table(title, header, rows, args.markdown)


if __name__ == '__main__':
    sys.exit(main())

"""``cnv2 benchmark --train``: time and memory of training steps."""

import argparse

from ._output import progress_printer


def run_train(args: argparse.Namespace) -> dict:
    """Measure training steps, print the table and return the figures."""
    import timm

    from .. import toolkits  # noqa: F401  (registers the models)
    from ..benchmark import machine
    from ..benchmark.train_cost import training_cost

    costs = training_cost(
        {name: timm.create_model(name) for name in args.models}, tuple(args.input_size), args.batch, args.threads,
        args.rounds, min(args.warmup, 2), progress=progress_printer(args.quiet),
    )  # fmt: skip
    _print(costs, args)
    return {'machine': machine(), 'training': [cost.as_dict() for cost in costs]}


def _print(costs, args: argparse.Namespace) -> None:
    from ._output import print_table

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

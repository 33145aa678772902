"""``cnv2 benchmark --train``: time and memory of training steps."""

import argparse
import json
from pathlib import Path


def run_train(args: argparse.Namespace) -> int:
    """Measure training steps, print the table and write the JSON file."""
    import timm
    from rich.console import Console

    from .. import toolkits  # noqa: F401  (registers the models)
    from ..benchmark import machine
    from ..benchmark.train_cost import training_cost

    console = Console(stderr=True, quiet=args.quiet)
    costs = training_cost(
        {name: timm.create_model(name) for name in args.models}, tuple(args.input_size), args.batch, args.threads,
        args.rounds, min(args.warmup, 2), progress=lambda text: console.print(text, highlight=False),
    )  # fmt: skip
    _print(costs, args)
    if args.json:
        from ..checkpoints import atomic_path

        content = {'machine': machine(), 'training': [cost.as_dict() for cost in costs]}
        with atomic_path(args.json) as temporary:
            Path(temporary).write_text(json.dumps(content, indent=2))
    return 0


def _print(costs, args: argparse.Namespace) -> None:
    from ._tables import print_table

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

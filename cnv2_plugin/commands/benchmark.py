"""``cnv2 benchmark``: latency of the forms of a model in several runtimes."""

import argparse
import json
from pathlib import Path

HELP = 'compare the latency of training, condensed and optimised forms in several runtimes'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        'models', nargs='*', default=['condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c'],
        help='timm names of models of this package (default: condensenetv2_a, _b and _c)',
    )  # fmt: skip
    parser.add_argument('--checkpoint', help='finished checkpoint of the one model given; random masks otherwise')
    parser.add_argument('--train', action='store_true', help='measure training steps instead of inference')
    parser.add_argument('--forms', nargs='+', default=['training', 'condensed'], help='default: training condensed')
    parser.add_argument('--runtimes', nargs='+', default=['eager', 'onnxruntime'], help='default: eager onnxruntime')
    parser.add_argument('--input-size', type=int, nargs=3, default=[3, 224, 224], metavar=('C', 'H', 'W'))
    parser.add_argument('--batch', type=int, default=1, help='images in a call (default 1)')
    parser.add_argument('--threads', type=int, default=1, help='threads of every runtime (default 1)')
    parser.add_argument('--rounds', type=int, default=40, help='measured rounds (default 40)')
    parser.add_argument('--warmup', type=int, default=5, help='unmeasured calls before them (default 5)')
    parser.add_argument('--json', type=Path, help='also write the figures to this file')
    parser.add_argument('--markdown', action='store_true', help='print the table as Markdown')
    parser.add_argument('--quiet', action='store_true', help='no progress')


def run(args: argparse.Namespace) -> int:
    """Measure, print the table and write the JSON file."""
    if args.train:
        from ._train_benchmark import run_train

        return run_train(args)
    from rich.console import Console

    from ..deploy.benchmark import benchmark, machine

    console = Console(stderr=True, quiet=args.quiet)
    models = {name: _model(name, args.checkpoint, len(args.models)) for name in args.models}
    measurements = benchmark(
        models, args.forms, args.runtimes, tuple(args.input_size), args.batch, args.threads,
        args.rounds, args.warmup, lambda text: console.print(text, highlight=False),
    )  # fmt: skip
    _print(measurements, args)
    if args.json:
        from ..checkpoints import atomic_path

        content = {'machine': machine(), 'measurements': [m.as_dict() for m in measurements]}
        with atomic_path(args.json) as temporary:
            Path(temporary).write_text(json.dumps(content, indent=2))
    return 0


def _model(name: str, checkpoint, count: int):
    import timm

    from .. import toolkits  # noqa: F401  (registers the models)
    from ..deploy.benchmark import random_finished

    model = timm.create_model(name)
    if checkpoint is None:
        return random_finished(model)
    if count > 1:
        raise ValueError(f'--checkpoint fits one model, but {count} are given; name the one it belongs to.')
    from ..checkpoints import find_state_dict, load_checkpoint

    model.load_state_dict(find_state_dict(load_checkpoint(checkpoint)))
    return model.eval()


def _print(measurements, args: argparse.Namespace) -> None:
    from ._tables import print_table

    base = {(m.model, m.runtime): m.timing.min for m in measurements if m.form == args.forms[0]}
    size = 'x'.join(map(str, args.input_size))
    title = f'Latency at {size}, batch {args.batch}, {args.threads} thread(s), {args.rounds} interleaved rounds'
    header = ['model', 'form', 'runtime', 'min ms', 'median ms', 'max ms', f'ratio to {args.forms[0]}', 'MB']
    rows = [
        [m.model, m.form, m.runtime, f'{m.timing.min:.2f}', f'{m.timing.median:.2f}', f'{m.timing.max:.2f}',
         f'{m.timing.min / base[m.model, m.runtime]:.2f}', f'{m.size / 1e6:.1f}']
        for m in measurements
    ]  # fmt: skip
    print_table(title, header, rows, args.markdown)

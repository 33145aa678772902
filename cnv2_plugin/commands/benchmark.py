"""``cnv2 benchmark``: latency of the forms of a model in several runtimes."""

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Optional

from ._output import print_table, progress_printer, write_json
from ._usage import UsageError, check_input, check_output, check_paths

SIZES = (128, 192, 256, 384, 512)
BATCHES = (1, 4, 16, 64)
MOVED = (
    "training steps (--train) and the authors' form (--forms authors) are measured by "
    'tools/research/benchmark.py in the repository, which takes the same options.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'models', nargs='*', default=['condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c'],
        help='timm names of models of this package (default: condensenetv2_a, _b and _c)',
    )  # fmt: skip
    parser.add_argument('--checkpoint', help='finished checkpoint of the one model given; random masks otherwise')
    parser.add_argument('--train', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--forms', nargs='+', help='of training, condensed, lowered, native (default: training '
                        'condensed lowered)')  # fmt: skip
    parser.add_argument('--runtimes', nargs='+', help='of eager, compile, onnxruntime, openvino, torch_export, '
                        'executorch, ncnn (default: eager onnxruntime)')  # fmt: skip
    parser.add_argument('--peers', nargs='*', metavar='FAMILY', help='also the ShuffleNetV2, MobileNetV3, GhostNet, '
                        'GhostNetV2 or EfficientNet-Lite of nearest multiply-adds')  # fmt: skip
    parser.add_argument('--input-size', type=int, nargs=3, default=[3, 224, 224], metavar=('C', 'H', 'W'))
    several = dict(type=int, nargs='+', default=[1])
    parser.add_argument('--batch', help='images in a call; may be several (default 1)', **several)
    parser.add_argument('--threads', help='of every runtime; may be several (default 1)', **several)
    parser.add_argument('--rounds', type=int, default=40, help='measured rounds (default 40)')
    parser.add_argument('--warmup', type=int, default=5, help='unmeasured calls before them (default 5)')
    parser.add_argument('--memory', action='store_true', help='also the peak memory of ONNX Runtime')
    parser.add_argument('--roofline', action='store_true', help="also the machine's limit for each model")
    parser.add_argument('--front', action='store_true', help="accuracy over latency among timm's small classifiers")
    parser.add_argument('--profile', metavar='FILE', help='only where the time of this native ONNX file goes')
    parser.add_argument('--scaling', action='store_true', help='also latency against image size and batch')
    parser.add_argument('--files', type=Path, help='folder where exported files are kept and found again')
    parser.add_argument('--json', nargs='?', const='-', metavar='FILE',
                        help='also write the figures to this file; without a name print them alone')  # fmt: skip
    parser.add_argument('--png', type=Path, help='also draw them')
    parser.add_argument('--markdown', action='store_true', help='print the tables as Markdown')
    parser.add_argument('--quiet', action='store_true', help='no progress')


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables and write the files that were asked for."""
    _check(args)
    check_paths([None if args.json == '-' else args.json, args.png], [args.checkpoint, args.profile])
    with redirect_stdout(sys.stderr) if args.json == '-' else nullcontext():
        measure = _profile if args.profile else _measure_front if args.front else _measure
        content = measure(args)
    if args.json:
        write_json(args.json, content)


def _measure(args: argparse.Namespace) -> dict:
    from ..benchmark import benchmark, count_mult_adds, machine, pinned, roofline
    from ..benchmark.peers import nearest_peers
    from ..benchmark.plot import plot_latency, plot_scaling
    from ..deploy.condense import condense

    args.progress = progress_printer(args.quiet)
    args.input_size = tuple(args.input_size)
    models = {name: _model(name, args.checkpoint, len(args.models)) for name in args.models}
    work = {name: count_mult_adds(condense(model), args.input_size) for name, model in models.items()}
    content = {'machine': machine(), 'measurements': [], 'mult_adds': work}
    common = dict(progress=args.progress, folder=args.files)
    peers = {name: nearest_peers(m, args.input_size, tuple(args.peers)) for name, m in work.items()}
    for threads in args.threads:
        for batch in args.batch:
            measured = benchmark(
                models, args.forms, args.runtimes, args.input_size, batch, threads, args.rounds, args.warmup,
                peers={k: v for nearest in peers.values() for k, v in nearest.items()},
                memory=args.memory and threads == 1, **common,
            )  # fmt: skip
            content['measurements'] += measured
            _print(measured, args)
            _print_ratios(measured, peers, args)
    limits = {}
    if args.roofline:
        with pinned(args.threads[0]):
            best = roofline()
        condensed = {name: sum(p.numel() for p in condense(model).parameters()) for name, model in models.items()}
        limits = {name: best.limit(work[name], 4 * condensed[name]) for name in models}
        content['roofline'] = {'mult_adds': best.mult_adds, 'bandwidth': best.bandwidth, 'limits': limits}
        _print_limits(best, limits, work, args)
    scaling = _scaling(models, args, common) if args.scaling else ([], [])
    if args.png:
        first = [m for m in content['measurements'] if (m.batch, m.threads) == (args.batch[0], args.threads[0])]
        plot_latency(first, limits, args.png)
        if args.scaling:
            plot_scaling(*scaling, args.png.with_stem(f'{args.png.stem}-scaling'))
    content['measurements'] = [asdict(m) for m in content['measurements']]
    if args.scaling:
        content['scaling'] = {key: [asdict(m) for m in by] for key, by in zip(('by_size', 'by_batch'), scaling)}
    return content


def _measure_front(args: argparse.Namespace) -> dict:
    from ..benchmark import machine
    from ..benchmark.front import front, measure_front, nearest_peer
    from ..benchmark.plot import plot_front

    points = measure_front(args.models, args.rounds, args.files, progress_printer(args.quiet))
    rows = [
        [p.name, p.form, f'{p.top1:.1f}', f'{p.milliseconds:.2f}', f'{p.mult_adds / 1e6:.0f}'] for p in front(points)
    ]
    header = ['model', 'form', 'top-1', 'min ms', 'M multiply-adds']
    print_table(f'Front of {len(points)} points, one thread, {args.rounds} rounds', header, rows, args.markdown)
    rows = []
    for point in (point for point in points if point.form != 'peer'):
        own = [point.name, point.form, f'{point.top1:.1f}', f'{point.milliseconds:.2f}']
        if peer := nearest_peer(point, points):
            ratio = point.milliseconds / peer.milliseconds
            rows.append([*own, peer.name, f'{peer.top1:.1f}', f'{peer.milliseconds:.2f}', f'{ratio:.2f}'])
        else:
            rows.append([*own, 'none', '', '', ''])
    header = [*header[:4], 'nearest peer', 'top-1', 'min ms', 'ratio']
    print_table('Ours and the fastest peer of equal or better accuracy', header, rows, args.markdown)
    if args.png:
        plot_front(points, args.png)
    return {'machine': machine(), 'points': [asdict(point) for point in points]}


def _profile(args: argparse.Namespace) -> dict:
    from ..benchmark import machine
    from ..benchmark.profile import profile

    shares = profile(args.profile, tuple(args.input_size), args.rounds)
    rows = [[s.kind, s.count or '', f'{s.milliseconds:.3f}', f'{100 * s.share:.1f}'] for s in shares]
    title = f'{Path(args.profile).name}: one image, one thread, least of {args.rounds} rounds'
    print_table(title, ['instructions', 'count', 'ms', '%'], rows, args.markdown)
    return {'machine': machine(), 'instructions': [asdict(share) for share in shares]}


def _check(args: argparse.Namespace) -> None:
    from ..benchmark.figures import FORMATS
    from ..benchmark.forms import EARLIER_NAMES, FORMS
    from ..benchmark.peers import PEERS
    from ..benchmark.runtimes import RUNTIMES

    if args.train or 'authors' in (args.forms or []) and 'authors' not in FORMS:
        raise UsageError(MOVED)
    given = args.forms or ['training', 'condensed', 'lowered']
    args.forms = [EARLIER_NAMES.get(form, form) for form in given]
    args.runtimes = args.runtimes or ['eager', 'onnxruntime']
    args.peers = args.peers or []
    options = (('--forms', args.forms, FORMS), ('--runtimes', args.runtimes, RUNTIMES), ('--peers', args.peers, PEERS))
    for option, given, known in options:
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UsageError(f'{option} has {", ".join(unknown)}; choose from {", ".join(known)}.')
    if args.png:
        check_output(args.png, FORMATS, '--png')
    check_input(args.input_size)
    if args.rounds < 1:
        raise UsageError(f'rounds is {args.rounds}; give at least 1.')


def _model(name: str, checkpoint: Optional[str], count: int):
    """The model to measure: of the checkpoint, or with random weights and finished pruning."""
    if checkpoint is not None:
        if count > 1:
            raise ValueError(f'--checkpoint fits one model, but {count} are given; name the one it belongs to.')
        from ._models import open_model

        options = argparse.Namespace(arch=name, no_ema=False, trust=False, key=None, prefix=None)
        return open_model(checkpoint, options, trained=True).model
    import timm
    import torch

    from ..benchmark import random_finished

    torch.manual_seed(0)
    return random_finished(timm.create_model(name))


def _scaling(models, args: argparse.Namespace, common: dict):
    from ..benchmark import benchmark, exponent

    def measure(size: tuple, batch: int):
        return benchmark(
            models, args.forms, args.runtimes[-1:], size, batch, args.threads[0], args.rounds, args.warmup, **common
        )

    channels = args.input_size[0]
    by_size = [m for size in SIZES for m in measure((channels, size, size), 1)]
    by_batch = [m for batch in BATCHES for m in measure(args.input_size, batch)]
    rows = []
    for label in dict.fromkeys((m.model, m.form, m.runtime) for m in by_size):
        row = list(label)
        for measured, name in ((by_size, 'height'), (by_batch, 'batch')):
            points = [(getattr(m, name), m.timing.min) for m in measured if (m.model, m.form, m.runtime) == label]
            row += [*(f'{least:.1f}' for _, least in points), f'{exponent(*zip(*points)):.2f}']
        rows.append(row)
    header = ['model', 'form', 'runtime', *map(str, SIZES), 'exponent', *(f'batch {b}' for b in BATCHES), 'exponent']
    print_table('Least ms against image height and batch', header, rows, args.markdown)
    return by_size, by_batch


def _print(measurements, args: argparse.Namespace) -> None:
    first = measurements[0]
    size = 'x'.join(map(str, args.input_size))
    title = f'Latency at {size}, batch {first.batch}, {first.threads} thread(s), {args.rounds} interleaved rounds'
    header = ['model', 'form', 'runtime', 'min ms', 'median ms', 'max ms', 'M multiply-adds', 'MB', 'peak MB']
    rows = [
        [m.model, m.form, m.runtime, f'{m.timing.min:.2f}', f'{m.timing.median:.2f}', f'{m.timing.max:.2f}',
         f'{m.mult_adds / 1e6:.0f}', f'{m.size / 1e6:.1f}', '' if m.memory is None else f'{m.memory / 1e6:.0f}']
        for m in measurements
    ]  # fmt: skip
    print_table(title, header, rows, args.markdown)


def _print_ratios(measurements, peers, args: argparse.Namespace) -> None:
    """The last form of each model against its other forms and its peers in the same runtime."""
    last = args.forms[-1]
    rows = []
    for m in measurements:
        if m.form != last:
            continue
        for other in measurements:
            is_other_form = other.model == m.model and other.form != last
            if other.runtime == m.runtime and (is_other_form or other.model in peers[m.model]):
                name = other.form if is_other_form else other.model
                ratios = m.timing.min / other.timing.min, m.timing.median / other.timing.median
                rows.append([m.model, m.runtime, name, *(f'{ratio:.2f}' for ratio in ratios)])
    if rows:
        header = ['model', 'runtime', f'{last} over', 'of minima', 'of medians']
        print_table('Ratios of latencies', header, rows, args.markdown)


def _print_limits(best, limits, work, args: argparse.Namespace) -> None:
    title = (
        f'Limit of this machine: {best.mult_adds / 1e9:.1f} G multiply-adds a second (large matrix product), '
        f'{best.bandwidth / 1e9:.1f} GB a second (copy)'
    )
    rows = [[name, f'{work[name] / 1e6:.0f}', f'{limits[name]:.2f}'] for name in limits]
    print_table(title, ['model', 'M multiply-adds, condensed', 'limit ms'], rows, args.markdown)

"""Native files against an older checkout's, PyTorch, two threads, batches of 8 and int8, all in the same rounds.

Times are minima, given as ratios to one image on one thread in ONNX Runtime in float32. The older checkout needs its
kernels built (``python setup.py build_ext --inplace`` there).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import onnxruntime  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402

import cnv2_plugin  # noqa: E402, F401  (registers the models with timm)
from cnv2_plugin.benchmark import machine, random_finished  # noqa: E402
from cnv2_plugin.benchmark.latency import pinned  # noqa: E402
from cnv2_plugin.commands._output import progress_printer  # noqa: E402
from cnv2_plugin.deploy import condense, export_onnx, lower  # noqa: E402
from cnv2_plugin.deploy.timing import Runner, interleave, onnx_session  # noqa: E402
from tools.research.tables import markdown  # noqa: E402

NETWORKS = 'condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c'
SIZE = 3, 224, 224
EXPORT_OLDER = """
import sys, timm, torch, cnv2_plugin
from cnv2_plugin.deploy import export_onnx
name, file, checkpoint = sys.argv[1:]
model = timm.create_model(name, deploy=True).eval()
model.load_state_dict(torch.load(checkpoint, weights_only=True))
export_onnx(model, file, (3, 224, 224), native=True)
"""


def runner(session: onnxruntime.InferenceSession, images: torch.Tensor) -> Runner:
    """A call of a session."""
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def older_session(checkout: Path, name: str, file: Path, checkpoint: Path) -> onnxruntime.InferenceSession:
    """A session of the native file that another checkout writes of these weights, with that checkout's kernels."""
    environment = {**os.environ, 'PYTHONPATH': str(checkout)}
    subprocess.run([sys.executable, '-c', EXPORT_OLDER, name, file, checkpoint], check=True, env=environment)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.register_custom_ops_library(str(next(checkout.glob('cnv2_plugin/kernels/_native*.so'))))
    return onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])


def measure(name: str, out: Path, older: Optional[Path], rounds: int) -> tuple[dict[str, float], float]:
    """Milliseconds an image by what ran, and the int8 file's share of the float32 file's size."""
    torch.manual_seed(0)
    model = condense(random_finished(timm.create_model(name)))
    images = torch.randn(8, *SIZE)
    file, small, checkpoint = (out / f'{name}{ending}' for ending in ('.onnx', '.int8.onnx', '.pth'))
    torch.save(model.state_dict(), checkpoint)
    export_onnx(model, file, SIZE, native=True)
    export_onnx(model, small, SIZE, native=True, int8=[images[:1]])
    native, one = lower(model, SIZE, 'native'), images[:1]

    def in_pytorch() -> torch.Tensor:
        with torch.inference_mode():
            return native(one)

    runners = {
        'now': runner(onnx_session(file), one),
        'PyTorch': in_pytorch,
        'two threads': runner(onnx_session(file, 2), one),
        'image of 8': runner(onnx_session(file), images),
        'int8': runner(onnx_session(small), one),
    }
    if older:
        runners['older'] = runner(older_session(older, name, out / f'{name}.older.onnx', checkpoint), one)
    torch.set_num_threads(1)
    found = interleave(runners, rounds, warmup=10, warmup_each_round=1, progress=progress_printer(False))
    least = {key: timing.min / (8 if key == 'image of 8' else 1) for key, timing in found.items()}
    return least, small.stat().st_size / file.stat().st_size


def main() -> None:
    """Measure every network, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', default=list(NETWORKS), metavar='NETWORK')
    parser.add_argument('--older', type=Path, metavar='CHECKOUT', help='folder of another state of this project')
    parser.add_argument('--rounds', type=int, default=100)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/native_speed'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    header = ['network', 'ms', 'over older', 'PyTorch', 'image of 8', 'two threads', 'int8', 'int8 file']
    rows = []
    with pinned(2):
        for name in args.networks:
            least, size = measure(name, args.out, args.older and args.older.resolve(), args.rounds)
            now = least['now']
            ratios = [now / least['older'] if args.older else None]
            ratios += [least[key] / now for key in ('PyTorch', 'image of 8', 'two threads', 'int8')]
            cells = ('' if ratio is None else f'{ratio:.2f}' for ratio in (*ratios, size))
            rows.append([name, f'{now:.2f}', *cells])
    print(f'{machine()["processor"]}, ONNX Runtime {onnxruntime.__version__}, {args.rounds} rounds\n')
    print(markdown(header, rows))


if __name__ == '__main__':
    main()

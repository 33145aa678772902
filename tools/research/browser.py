"""ONNX files in the browser's runtime: onnxruntime-web on one thread of Node, compared with ONNX Runtime here.

``python tools/research/browser.py --markdown`` prints the table of docs/speed.md. The package comes from npm's registry
and is kept in ``build/onnxruntime-web``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import cnv2_plugin.toolkits  # noqa: E402, F401  (registers the models)
from cnv2_plugin.benchmark import Timing, random_finished  # noqa: E402
from cnv2_plugin.benchmark.peers import make_peer  # noqa: E402
from cnv2_plugin.commands._output import print_table  # noqa: E402
from cnv2_plugin.deploy import condense, lower  # noqa: E402
from cnv2_plugin.deploy.runtimes import onnxruntime  # noqa: E402

PACKAGE = 'onnxruntime-web@1.30.0'
MODELS = (
    'condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c', 'shufflenet_v2_x0_5', 'shufflenet_v2_x1_0',
    'shufflenet_v2_x1_5',
)  # fmt: skip
RULES = {'lowered': 'onnxruntime', 'lowered-openvino': 'openvino', 'lowered-ncnn': 'ncnn'}
"""Lowered forms by the runtime whose rules choose; the first one is what ``cnv2 deploy`` writes."""


class BrowserRuntimeMissingError(RuntimeError):
    """Node or the package is not here and cannot be had."""


@dataclass(frozen=True)
class InBrowser:
    """What a file took and gave.

    Attributes:
        timing: milliseconds of one call.
        difference: largest difference to ONNX Runtime on the same images, over the largest output.
    """

    timing: Timing
    difference: float


def runtime() -> Path:
    """The folder with the package, which is installed there first where it is missing.

    Raises:
        BrowserRuntimeMissingError: there is no Node or no npm, or the registry cannot be reached.
    """
    if not shutil.which('node') or not shutil.which('npm'):
        raise BrowserRuntimeMissingError('there is no Node with npm here; install nodejs and npm.')
    folder = ROOT / 'build' / PACKAGE.replace('@', '-')
    if not (folder / 'node_modules/onnxruntime-web/package.json').exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ['--ignore-scripts', '--no-audit', '--no-fund', '--silent']
        done = subprocess.run(['npm', 'install', '--prefix', folder, *options, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            raise BrowserRuntimeMissingError(f'npm could not install {PACKAGE}: {done.stderr[-300:]}')
    return folder


def run_files(files: Sequence[Path], image: numpy.ndarray, rounds: int = 1) -> list[InBrowser]:
    """Run files in onnxruntime-web in interleaved rounds.

    Args:
        files: of one float32 input and one output.
        image: ``(N, C, H, W)``, float32.
        rounds: measured calls of each file, after one that is not.

    Raises:
        BrowserRuntimeMissingError: Node or the package is missing.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as place:
        given = Path(place, 'image')
        image.tofile(given)
        outputs = [Path(place, str(i)) for i in range(len(files))]
        every = [
            dict(model=str(file), input=str(given), shape=image.shape, output=str(output))
            for file, output in zip(files, outputs)
        ]
        job = dict(runtime=str(runtime()), rounds=rounds, files=every)
        script = Path(__file__).with_suffix('.mjs')
        done = subprocess.run(['node', script], input=json.dumps(job), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'onnxruntime-web could not run {", ".join(map(str, files))}: {done.stderr[-2000:]}')
        results = []
        for file, output, times in zip(files, outputs, json.loads(done.stdout)):
            session = ort.InferenceSession(str(file), providers=['CPUExecutionProvider'])
            expected = session.run(None, {session.get_inputs()[0].name: image})[0].ravel()
            difference = abs(numpy.fromfile(output, numpy.float32) - expected).max() / abs(expected).max()
            results.append(InBrowser(Timing.of([time / 1e3 for time in times]), float(difference)))
    return results


def forms(model: nn.Module, names: Sequence[str], size: tuple[int, int, int]) -> dict[str, nn.Module]:
    """The forms of a finished model; a network without sparse layers has one."""
    if not hasattr(model, 'sparse_layers'):
        return {'-': model}
    return {name: lower(model, size, RULES[name], verify=False) if name in RULES else condense(model) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, run them and print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='*', default=MODELS, help='ours, of timm, or shufflenet_v2_x0_5 and so on of torchvision'
    )
    parser.add_argument('--forms', nargs='+', default=['lowered'], choices=['condensed', *RULES])
    parser.add_argument('--input-size', type=int, nargs=3, default=(3, 224, 224), metavar=('C', 'H', 'W'))
    parser.add_argument('--rounds', type=int, default=60, help='measured calls of each file (default 60)')
    parser.add_argument('--markdown', action='store_true', help='print the table as Markdown')
    args = parser.parse_args(argv)
    image = numpy.random.default_rng(0).standard_normal((1, *args.input_size), numpy.float32)
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name in args.models:
            model = random_finished(make_peer(name))
            for form, module in forms(model, args.forms, tuple(args.input_size)).items():
                files[name, form] = Path(place, f'{name}-{form}.onnx')
                onnxruntime.write(module.eval(), files[name, form], torch.from_numpy(image))
        measured = run_files(list(files.values()), image, args.rounds)
    rows = [
        [name, form, f'{one.timing.min:.1f}', f'{one.timing.median:.1f}', f'{one.difference:.0e}']
        for (name, form), one in zip(files, measured)
    ]
    title = f'{PACKAGE}, one thread, {"x".join(map(str, args.input_size))}, {args.rounds} rounds'
    print_table(title, ['model', 'form', 'min ms', 'median ms', 'difference'], rows, args.markdown)
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Writes the table of light detectors into ``configs/mmdet/README.md``: ours beside MMDetection's, whole ONNX files.

Every file is written by the same code as ``cnv2 deploy CONFIG CHECKPOINT --out d.onnx`` and timed in ONNX Runtime with
one thread, all in the same interleaved rounds. Weights are random, so that a common threshold decides how many boxes
are looked at.
"""

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from mmengine.hub import get_config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from torch import nn  # noqa: E402

from cnv2_plugin.analysis import count_cost  # noqa: E402
from cnv2_plugin.benchmark import machine, random_finished  # noqa: E402
from cnv2_plugin.benchmark.latency import pinned  # noqa: E402
from cnv2_plugin.commands._config_models import HeadOutputs  # noqa: E402
from cnv2_plugin.commands._output import progress_printer  # noqa: E402
from cnv2_plugin.deploy import condense  # noqa: E402
from cnv2_plugin.deploy.runtimes import onnxruntime  # noqa: E402
from cnv2_plugin.deploy.timing import Progress, interleave  # noqa: E402
from cnv2_plugin.kernels import available  # noqa: E402
from cnv2_plugin.toolkits.openmmlab.deploy_files import build  # noqa: E402
from cnv2_plugin.toolkits.openmmlab.runner_config import load_config  # noqa: E402
from cnv2_plugin.whole.detectors import export_detector  # noqa: E402
from tools.research.tables import markdown, replace_table  # noqa: E402

CONFIGS = Path(__file__).parents[2] / 'configs/mmdet'
SIZES = (320, 416)
PEERS = (
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
)
TEST_CFG = dict(nms_pre=1000, score_thr=0.3, nms=dict(type='nms', iou_threshold=0.65), max_per_img=100)
"""In place of the configs' own, which are made for the metric: of an untrained network everything is above them."""
MARK = 'light detectors'
FORMS = ('standard', 'native')


@dataclass(frozen=True)
class Row:
    """One detector at one size.

    Attributes:
        name: of its config.
        size: height and width of the images.
        params: parameters of the network in the file.
        mult_adds: multiply-adds of the network in the file.
        boxes: found in the image.
        milliseconds: least latency by form.
    """

    name: str
    size: int
    params: int
    mult_adds: int
    boxes: int
    milliseconds: dict[str, float]


def main(argv: Optional[list[str]] = None) -> int:
    """Measure, and write or print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=60, help='interleaved rounds (default: 60)')
    parser.add_argument('--only', nargs='+', metavar='WORD', help='detectors whose names have one of these words')
    parser.add_argument('--readme', type=Path, default=CONFIGS / 'README.md', help='page whose table is replaced')
    parser.add_argument('--print', action='store_true', help='print the table and leave the page as it is')
    args = parser.parse_args(argv)
    try:
        text = told(measure(detectors(args.only), args.rounds, progress_printer(False)), args.rounds)
        print(text, end='') if args.print else replace_table(text, args.readme, MARK)
    except (OSError, ValueError, RuntimeError) as error:
        print(f'light_detectors: {error}', file=sys.stderr)
        return 1
    return 0


def detectors(words: Optional[list[str]] = None) -> list[tuple[str, int]]:
    """Configs with the size at which each is measured.

    Raises:
        ValueError: none has one of the words.
    """
    ours = [(str(path), size) for size in SIZES for path in sorted(CONFIGS.glob(f'*-light_*coco-{size}.py'))]
    found = [*ours, *((peer, size) for size in SIZES for peer in PEERS)]
    found = [(path, size) for path, size in found if not words or any(word in path for word in words)]
    if not found:
        raise ValueError(f'no detector has a name with {" or ".join(words or [])}; leave out --only to see them all.')
    return sorted(found, key=lambda one: one[1])


def measure(configs: list[tuple[str, int]], rounds: int, progress: Progress) -> list[Row]:
    """Write the files of all detectors and time them in the same rounds."""
    costs, runners, found = {}, {}, {}
    forms = FORMS if available() else FORMS[:1]
    with TemporaryDirectory() as temporary, pinned(1):
        for config, size in configs:
            name = Path(config).stem
            progress(f'writing {name} at {size}x{size}')
            model = condense(untrained(config))
            costs[name, size] = count_cost(HeadOutputs(model), (3, size, size))
            images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            for form in forms:
                file = Path(temporary) / f'{name}_{size}_{form}.onnx'
                try:
                    export_detector(model, file, (3, size, size), batch=1, fixed_size=True, native=form == 'native')
                except ValueError as error:
                    if form == 'standard' or config not in PEERS:
                        raise
                    progress(f'{name} in one form only: {error}')
                    continue
                load = onnxruntime.load(file)
                found[name, size] = int((load(images)[2] >= 0).sum())
                runners[name, size, form] = lambda load=load, images=images: load(images)
        timings = interleave(runners, rounds, progress=progress, warmup_each_round=1)
    return [
        Row(name, size, cost.params, cost.mult_adds, found[name, size], {
            form: timings[name, size, form].min for form in forms if (name, size, form) in timings
        })
        for (name, size), cost in costs.items()
    ]  # fmt: skip


def untrained(config: str) -> nn.Module:
    """The finished network of a config with random weights, and the common thresholds."""
    cfg = get_config(config) if config.startswith('mmdet::') else load_config(config)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(TEST_CFG)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build(cfg))
    logging.disable(logging.INFO)  # mmengine tells of every parameter that it initialises
    model.init_weights()
    logging.disable(logging.NOTSET)
    return random_finished(model)


def told(rows: list[Row], rounds: int) -> str:
    """The table in Markdown, with what it was measured on."""
    header = ['detector', 'input', 'parameters (k)', 'multiply-adds (M)', 'standard (ms)', 'native (ms)']
    cells = [
        [row.name, f'{row.size}x{row.size}', f'{row.params / 1e3:,.0f}', f'{row.mult_adds / 1e6:.1f}',
         *(f'{row.milliseconds[form]:.2f}' if form in row.milliseconds else '' for form in FORMS)]
        for row in rows
    ]  # fmt: skip
    where, versions = machine(), machine()['versions']
    most = max(row.boxes for row in rows)
    passing = f'at most {most} boxes of the image pass' if most else 'no box of the image passes'
    return (
        f'{markdown(header, cells)}\nRandom weights, pruning finished, post-processing with the same settings '
        f'(`score_thr={TEST_CFG["score_thr"]}`, `nms_pre={TEST_CFG["nms_pre"]}`), which\n{passing}. Whole files from '
        f'images to boxes, batch 1, ONNX Runtime {versions["onnxruntime"]}, one thread of\n{where["processor"]} '
        f'({where["instructions"]}), least of {rounds} interleaved rounds. `native` is empty where the kernels know no '
        f'stage.\n'
    )


if __name__ == '__main__':
    sys.exit(main())

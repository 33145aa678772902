"""The front of accuracy over latency: our networks among timm's small classifiers, all in the same rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Optional, Union

import torch

from ..archs import VARIANTS
from ..deploy.condense import condense
from ..deploy.export import export_onnx
from ..deploy.lower import lower
from ..deploy.quantize import quantize_onnx
from ..deploy.runtimes import onnxruntime
from ..deploy.timing import Progress, interleave
from ..kernels import available
from ..models.multiply_adds import count_mult_adds
from .latency import pinned, random_finished
from .peers import make_peer
from .runtimes import exported

LIMIT = 600_000_000
PUBLISHED: dict[str, tuple[int, float]] = {
    'tinynet_e': (106, 59.874), 'tinynet_d': (152, 66.936), 'tinynet_c': (184, 71.214), 'tinynet_b': (188, 74.946),
    'tinynet_a': (192, 77.666), 'lcnet_050': (224, 63.138), 'lcnet_075': (224, 68.786), 'lcnet_100': (224, 72.130),
    'mobilenetv3_small_050': (224, 57.918), 'mobilenetv3_small_075': (224, 65.284),
    'tf_mobilenetv3_small_100': (224, 67.922), 'tf_mobilenetv3_large_075': (224, 73.442),
    'mobilenetv3_large_100': (224, 76.310), 'mobilenetv4_conv_small_050': (224, 64.778),
    'mobilenetv4_conv_small': (224, 73.756), 'mobilenetv1_100': (224, 75.388), 'mobilenetv2_050': (224, 65.928),
    'mobilenetv2_100': (224, 72.910), 'mnasnet_small': (224, 66.204), 'mnasnet_100': (224, 74.672),
    'semnasnet_075': (224, 73.000), 'semnasnet_100': (224, 75.452), 'spnasnet_100': (224, 74.086),
    'fbnetc_100': (224, 75.120), 'repghostnet_050': (224, 66.978), 'repghostnet_058': (224, 68.938),
    'repghostnet_080': (224, 72.240), 'repghostnet_100': (224, 74.208), 'repghostnet_130': (224, 76.378),
    'repghostnet_150': (224, 77.474), 'ghostnet_100': (224, 73.958), 'ghostnetv2_100': (224, 75.186),
    'regnetx_002': (224, 68.758), 'regnety_002': (224, 70.288), 'regnety_004': (224, 75.594),
    'efficientvit_m1': (224, 68.340), 'efficientvit_m3': (224, 73.394), 'efficientvit_m5': (224, 77.092),
    'shvit_s1': (224, 72.780), 'shvit_s2': (224, 75.184), 'starnet_s1': (224, 73.532), 'fasternet_t0': (224, 71.732),
    'mobileone_s0': (224, 71.398), 'edgenext_xx_small': (256, 71.132), 'efficientnet_lite0': (224, 75.488),
    'efficientnet_b0': (224, 78.568), 'hardcorenas_a': (224, 75.926), 'hardcorenas_f': (224, 78.100),
    'hgnetv2_b0': (224, 77.362), 'levit_128s': (224, 76.520), 'rexnet_100': (224, 77.862),
    'shufflenet_v2_x0_5': (224, 60.552), 'shufflenet_v2_x1_0': (224, 69.362), 'shufflenet_v2_x1_5': (224, 72.996),
    'shufflenet_v2_x2_0': (224, 76.230),
}  # fmt: skip
"""Image height and ImageNet top-1 of the best weights: ``results/results-imagenet.csv`` of timm, ShuffleNetV2's from
torchvision's table of weights. Networks above :data:`LIMIT` multiply-adds are left out when measuring."""


@dataclass(frozen=True)
class Point:
    """A network, or one form of ours.

    Attributes:
        name: of the network.
        form: ``'standard'``, ``'int8'``, ``'native'`` or ``'native int8'`` for ours; ``'peer'`` for the others.
        top1: published ImageNet accuracy in percent.
        height: of the images.
        mult_adds: multiply-adds of one image.
        milliseconds: least latency of all rounds.
    """

    name: str
    form: str
    top1: float
    height: int
    mult_adds: int
    milliseconds: float


def measure_front(
    models: Sequence[str], rounds: int = 25, folder: Optional[Union[str, Path]] = None,
    progress: Optional[Progress] = None, peers: Sequence[str] = tuple(PUBLISHED),
) -> list[Point]:  # fmt: skip
    """Measure our networks and the peers in ONNX Runtime: one thread, batch 1, interleaved rounds.

    Returns one point a peer of at most :data:`LIMIT` multiply-adds, and up to four a network of ours. Exported files
    are kept in ``folder`` and found again.

    Raises:
        ValueError: a network without published ImageNet accuracy, or an unknown peer.
    """
    from timm.utils.model import reparameterize_model

    ours = {name: v.published for name, v in VARIANTS.items() if v.published and v.input_size[1] == 224}
    known = {name: 100 - figures.top1_error for name, figures in ours.items() if figures.top1_error}
    unknown = [name for name in models if name not in known] + [name for name in peers if name not in PUBLISHED]
    if unknown:
        raise ValueError(
            f'no published ImageNet accuracy is known of {", ".join(unknown)}; choose from '
            f'{", ".join([*known, *PUBLISHED])}.'
        )
    report = progress or (lambda text: None)
    runners, points = {}, {}
    with TemporaryDirectory() as temporary, pinned(1):
        place = Path(folder or temporary)
        place.mkdir(parents=True, exist_ok=True)
        for name in peers:
            report(f'preparing {name}')
            height, top1 = PUBLISHED[name]
            torch.manual_seed(0)
            model = reparameterize_model(make_peer(name))
            work = count_mult_adds(model, (3, height, height))
            if work <= LIMIT:
                prepared = exported('onnxruntime', 1e-3)(model, torch.randn(1, 3, height, height), 1, place, False)
                points[name, 'peer'] = (top1, height, work)
                runners[name, 'peer'] = prepared.run
        for name in models:
            report(f'preparing {name}')
            for form, run, work in _forms(name, place):
                points[name, form] = (known[name], 224, work)
                runners[name, form] = run
        timings = interleave(runners, rounds, progress=report)
    return [Point(*key, *points[key], timings[key].min) for key in points]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point equals or beats in both accuracy and latency, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.milliseconds, -point.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def nearest_peer(point: Point, points: Sequence[Point]) -> Optional[Point]:
    """The fastest peer that is at least as accurate, or None."""
    rivals = [other for other in points if other.form == 'peer' and other.top1 >= point.top1]
    return min(rivals, key=lambda other: other.milliseconds, default=None)


def _forms(name: str, place: Path):
    """Name, runner and multiply-adds of each form of one of our networks, with random weights."""
    import timm

    torch.manual_seed(0)
    model = random_finished(timm.create_model(name))
    images = torch.randn(1, 3, 224, 224)
    work = count_mult_adds(condense(model), (3, 224, 224))
    prepared = exported('onnxruntime')(lower(model, (3, 224, 224)), images, 1, place, True)
    yield 'standard', prepared.run, work
    small = prepared.file.with_suffix('.int8.onnx')
    if not small.exists():
        quantize_onnx(prepared.file, small, [images.numpy()], rounds=1)
    yield 'int8', partial(onnxruntime.load(small), images), work
    if available():
        native = lower(model, (3, 224, 224), 'native')
        yield 'native', exported('onnxruntime')(native, images, 1, place, True).run, work
        small = prepared.file.with_suffix('.native-int8.onnx')
        if not small.exists():
            export_onnx(model, small, (3, 224, 224), batch=1, native=True, int8=[images])
        yield 'native int8', partial(onnxruntime.load(small), images), work

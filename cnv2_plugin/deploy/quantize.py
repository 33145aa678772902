"""Static int8 quantisation of an exported ONNX file, by ONNX Runtime's own tools."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy

from ..checkpoints import atomic_path
from .timing import Timing, interleave, onnx_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Calibration = Union[str, Path, Sequence[numpy.ndarray]]

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@dataclass(frozen=True)
class QuantizationReport:
    """What was written, and how far it is from float32 on the calibration images.

    Attributes:
        path: the int8 ONNX file.
        size: its bytes.
        images: calibration images.
        agreement: share of them with the same largest output.
        max_rel: largest difference over the largest float32 output.
        float32: latency of one image before, in one thread.
        int8: latency after, in the same interleaved rounds.
    """

    path: Path
    size: int
    images: int
    agreement: float
    max_rel: float
    float32: Timing
    int8: Timing


def quantize_onnx(
    source: Union[str, Path],
    target: Union[str, Path],
    calibration: Calibration,
    config: Optional[Mapping[str, Any]] = None,
    limit: int = 256,
    rounds: int = 20,
) -> QuantizationReport:
    """Quantise weights per channel and activations per tensor, with ranges seen on calibration images.

    Post-training quantisation is not exact: compare the accuracy, with :func:`accuracy`, before using the file.

    Args:
        source: float32 ONNX file with one input.
        target: file to write.
        calibration: folder of images (subfolders too), or arrays ``(N, C, H, W)`` as the network takes them.
        config: ``mean``, ``std``, ``crop_pct`` and ``interpolation`` of the images; ImageNet's by default.
        limit: use at most so many images, spread evenly.
        rounds: rounds of the latency measurement.

    Raises:
        ValueError: there are no calibration images.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before = onnx_session(Path(source))
    name, shape = before.get_inputs()[0].name, before.get_inputs()[0].shape
    if isinstance(calibration, (str, Path)):
        batches = image_batches(calibration, shape, config or {}, limit)
    else:
        batches = [numpy.asarray(batch, numpy.float32) for batch in calibration]
    if not batches:
        raise ValueError('calibration holds no images; give some that look like those the network will see.')
    feeds = iter([{name: batch} for batch in batches])
    with TemporaryDirectory() as folder, atomic_path(target) as temporary:
        prepared = Path(folder) / 'prepared.onnx'
        quant_pre_process(str(source), str(prepared))
        quantize_static(
            str(prepared),
            str(temporary),
            SimpleNamespace(get_next=lambda: next(feeds, None)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'Gemm'],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
        )
        report = compare_int8(source, temporary, batches, rounds)
    return replace(report, path=Path(target))


def compare_int8(
    source: Union[str, Path], quantised: Union[str, Path], batches: Sequence[numpy.ndarray], rounds: int = 20
) -> QuantizationReport:
    """Compare an int8 file with the float32 one that it stands for, on batches ``(N, C, H, W)`` of images."""
    before, after = onnx_session(Path(source)), onnx_session(Path(quantised))
    name, size = before.get_inputs()[0].name, Path(quantised).stat().st_size
    expected, actual = _outputs(before, batches), _outputs(after, batches)
    timings = interleave(
        {key: _runner(session, name, batches[0][:1]) for key, session in (('float32', before), ('int8', after))}, rounds
    )
    return QuantizationReport(
        Path(quantised),
        size,
        len(expected),
        float((expected.argmax(1) == actual.argmax(1)).mean()),
        float(abs(expected - actual).max() / abs(expected).max()),
        timings['float32'],
        timings['int8'],
    )


def accuracy(path: Union[str, Path], batches: Iterable[tuple[numpy.ndarray, numpy.ndarray]]) -> float:
    """Share of images whose largest output is their label.

    Args:
        path: ONNX classifier.
        batches: pairs of images ``(N, C, H, W)`` and labels ``(N,)``.

    Raises:
        ValueError: there are no images.
    """
    session = onnx_session(Path(path))
    right = total = 0
    for images, labels in batches:
        outputs = _outputs(session, [images])
        right, total = right + int((outputs.argmax(1) == labels).sum()), total + len(labels)
    if not total:
        raise ValueError('accuracy takes at least one image; there are none.')
    return right / total


def image_batches(
    folder: Union[str, Path], shape: Sequence, config: Mapping[str, Any], limit: int = 256
) -> list[numpy.ndarray]:
    """Images of a folder as a network of that input shape takes them; see :func:`quantize_onnx` for the options."""
    if not Path(folder).is_dir():
        raise ValueError(f'{folder} is not a folder; give a folder with images for calibration.')
    paths = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f'{folder} holds no images ({", ".join(SUFFIXES)}); give a folder with some for calibration.')
    if isinstance(shape[0], int) and len(paths) < shape[0]:
        raise ValueError(f'{folder} holds {len(paths)} images, fewer than the batch of {shape[0]}; give more images.')
    chosen = [paths[i * len(paths) // min(limit, len(paths))] for i in range(min(limit, len(paths)))]
    size = shape[0] if isinstance(shape[0], int) else 1
    images = [_image(path, shape[1:], config) for path in chosen]
    return [numpy.stack(images[i : i + size]) for i in range(0, len(images) - size + 1, size)]


def _image(path: Path, shape: Sequence[int], config: Mapping[str, Any]) -> numpy.ndarray:
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        image = Image.open(path).convert('L' if channels == 1 else 'RGB')
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f'{path} is no readable image ({error}); remove it or give another folder.') from error
    scale = max(height / image.height, width / image.width) / config.get('crop_pct', 0.875)
    method = Image.Resampling.BICUBIC if config.get('interpolation') == 'bicubic' else Image.Resampling.BILINEAR
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image.resize(size, method)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    pixels = numpy.asarray(resized.crop((left, top, left + width, top + height)), numpy.float32) / 255
    pixels = pixels.reshape(height, width, channels)
    mean = numpy.asarray(per_channel(config.get('mean', (0.485, 0.456, 0.406)), channels), numpy.float32)
    std = numpy.asarray(per_channel(config.get('std', (0.229, 0.224, 0.225)), channels), numpy.float32)
    return ((pixels - mean) / std).transpose(2, 0, 1)


def per_channel(values: Sequence[float], channels: int) -> list[float]:
    """Statistics for each channel; of other numbers of channels their mean, as grey images are means of colours."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def _outputs(session: 'InferenceSession', batches: Iterable[numpy.ndarray]) -> numpy.ndarray:
    name, size = session.get_inputs()[0].name, session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else 64
    left_out = step - 1 if isinstance(size, int) else 0
    starts = ((batch, start) for batch in batches for start in range(0, len(batch) - left_out, step))
    return numpy.concatenate([session.run(None, {name: batch[i : i + step]})[0] for batch, i in starts])


def _runner(session: 'InferenceSession', name: str, image: numpy.ndarray) -> Callable[[], Any]:
    size = session.get_inputs()[0].shape[0]
    images = numpy.repeat(image, size, 0) if isinstance(size, int) else image
    return lambda: session.run(None, {name: images})

"""A deployed file, opened in ONNX Runtime."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union, cast

import numpy
import onnxruntime
from PIL.Image import Image

from ..kernels import KernelsMissingError, onnxruntime_library
from .answers import Classification, Detection, Segmentation, classification, detection, segmentation
from .images import ImageLike, Prepared, open_image, prepare
from .metadata import FileKindError, describe

Answer = Union[Classification, Detection, Segmentation]
BATCH = 8
"""Images of one size that are computed together where the file takes any number."""


class Model:
    """A deployed classifier, detector or segmenter that answers in names and pixels of the original image.

    An instance may be used by several threads. Processes that share no memory open the file themselves; do that after
    forking.

    Args:
        path: ONNX file that ``cnv2 deploy`` or ``cnv2 export`` wrote.
        threads: of one call; by default as many as the processor has cores.
        **metadata: values in place of those of the file, such as ``mean``, ``std``, ``size`` or ``classes``.

    Attributes:
        about: what the file says of itself.

    Raises:
        FileKindError: the file is no ONNX file, of another kind, or of a newer version of this package.
        KernelsMissingError: the file needs the native kernels, and they are not built in this installation.
        OSError: there is no such file.
    """

    def __init__(self, path: Union[str, Path], threads: Optional[int] = None, **metadata: Any) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f'threads is {threads!r}; it takes a whole number of at least 1.')
        self.path = str(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{path} is not a file; give the path of a deployed ONNX file.')
        self._session = _open(self.path, threads)
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        self._takes_sizes = any(item.name == 'sizes' for item in self._session.get_overridable_initializers())
        self._outputs = [output.name for output in self._session.get_outputs()]
        texts = self._session.get_modelmeta().custom_metadata_map
        self.about = describe(self.path, texts, list(entry.shape), self._outputs, metadata)
        self._batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def __call__(
        self, images: Union[ImageLike, Iterable[ImageLike]], top: Optional[int] = 5, threshold: float = 0.0
    ) -> Union[Answer, list[Answer]]:
        """Answer for one image, or with a list for several.

        Args:
            images: one or several: path, bytes of a file, Pillow image, ``uint8 (H, W)``, ``(H, W, 1)`` or RGB
                ``(H, W, 3)``.
            top: classes to name, the likeliest first; None for all.
            threshold: objects with at most this score are left out.

        Raises:
            ValueError: an image cannot be read.
            TypeError: an image is of another type.
        """
        one = isinstance(images, numpy.ndarray) and images.ndim < 4
        if one or isinstance(images, (str, bytes, os.PathLike, Image)):
            return next(self.answers([cast(ImageLike, images)], top, threshold))
        return list(self.answers(images, top, threshold))

    def answers(self, images: Iterable[ImageLike], top: Optional[int] = 5, threshold: float = 0.0) -> Iterator[Answer]:
        """Answer for one image after the other, with a few in memory at a time."""
        waiting: list[Prepared] = []
        mode = 'L' if self.about.channels == 1 else 'RGB'
        for image in images:
            prepared = prepare(open_image(image, mode), self.about)
            if waiting and prepared.array.shape != waiting[0].array.shape:
                yield from self._computed(waiting, top, threshold)
                waiting = []
            waiting.append(prepared)
            if len(waiting) == (self._batch or BATCH):
                yield from self._computed(waiting, top, threshold)
                waiting = []
        if waiting:
            yield from self._computed(waiting, top, threshold)

    def _computed(self, images: list[Prepared], top: Optional[int], threshold: float) -> Iterator[Answer]:
        arrays = [image.array for image in images]
        arrays += arrays[-1:] * ((self._batch or 0) - len(arrays))
        try:
            fed = {self._input: numpy.stack(arrays)}
            if self._takes_sizes:
                sizes = [image.inside for image in images]
                fed['sizes'] = numpy.array(sizes + sizes[-1:] * (len(arrays) - len(sizes)), numpy.int64)
            results = self._session.run(None, fed)
        except Exception as error:  # ONNX Runtime has a dozen types that share none but this
            raise RuntimeError(
                f'{self.path} cannot be run: {_line(error)} Mend that, or deploy the file again with this version.'
            ) from error
        found = dict(zip(self._outputs, results))
        for i, image in enumerate(images):
            rows = {name: values[i] for name, values in found.items()}
            if self.about.kind == 'classifier':
                yield classification(results[0][i], self.about, top)
            elif self.about.kind == 'detector':
                yield detection(rows, image, self.about, threshold)
            else:
                yield segmentation(rows, image, self.about)


def _open(path: str, threads: Optional[int]) -> onnxruntime.InferenceSession:
    """Open a session, with the native kernels where the file needs them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    if b'NativeStages' in Path(path).read_bytes():
        try:
            options.register_custom_ops_library(onnxruntime_library())
        except KernelsMissingError as error:
            raise KernelsMissingError(f'{path} needs the native kernels: {error}') from error
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # ONNX Runtime has a dozen types that share none but this
        raise FileKindError(
            f'{path} is no ONNX file that can be opened here, or is damaged; deploy or copy it again. ({_line(error)})'
        ) from error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__

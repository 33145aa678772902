"""The compiled kernels, loaded where they were built."""

import ctypes
import importlib.metadata
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .opcodes import OPERATIONS, VERSION

if TYPE_CHECKING:
    from onnxruntime import SessionOptions
    from torch import Tensor

FILE = Path(__file__).with_name('_native.dll' if os.name == 'nt' else '_native.so')
_Shape = ctypes.c_int64 * 3


class KernelsMissingError(RuntimeError):
    """The native kernels were not built with this installation."""


def available() -> bool:
    """Whether the native kernels are built and can be loaded."""
    try:
        load()
    except KernelsMissingError:
        return False
    return True


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """The library.

    Raises:
        KernelsMissingError: it was not built, or is of another version.
    """
    if not FILE.exists():
        raise KernelsMissingError(
            'the native kernels are not built in this installation; install cnv2_plugin again where a C++17 compiler '
            '(g++ or clang++) is on the path, or a wheel for this platform, or leave out "native".'
        )
    try:
        library = ctypes.CDLL(str(FILE))
    except OSError as error:
        raise KernelsMissingError(
            f'the native kernels cannot be loaded on this machine ({error}); install cnv2_plugin again where a C++17 '
            f'compiler is on the path.'
        ) from error
    if library.cnv2_version() != VERSION:
        raise KernelsMissingError(
            f'the native kernels are of version {library.cnv2_version()}, but this package needs {VERSION}; install '
            f'cnv2_plugin again so that they are built anew.'
        )
    library.cnv2_instruction_set.restype = ctypes.c_char_p
    address, size = ctypes.c_void_p, ctypes.c_int64
    library.cnv2_run.argtypes = [
        address, size, address, size, address, size, size, size, size, address, _Shape, size, ctypes.c_char_p, size,
    ]  # fmt: skip
    return library


def instruction_set() -> str:
    """Name of the instruction set that the kernels use on this processor.

    Raises:
        KernelsMissingError: the kernels are not built, or ``CNV2_KERNELS`` names others than the processor runs.
    """
    name = load().cnv2_instruction_set()
    if name is None:
        raise KernelsMissingError(
            f'CNV2_KERNELS is {os.environ.get("CNV2_KERNELS")}, which this processor does not run; take baseline, '
            f'avx2, avx512 or avx512vnni on x86-64, neon or dotprod on ARM64, or leave it unset.'
        )
    return name.decode()


def built_for() -> str:
    """Platform of the wheel that brought the kernels, or that this machine built them."""
    try:
        wheel = importlib.metadata.distribution('cnv2_plugin').read_text('WHEEL') or ''
    except importlib.metadata.PackageNotFoundError:
        wheel = ''
    return next(
        (tag for tag in re.findall(r'^Tag: \S+-(\w+)$', wheel, re.M) if tag != 'any'), 'this machine, from source'
    )


def onnxruntime_library() -> str:
    """Path of the library that adds the native operators to ONNX Runtime.

    Give it to ``SessionOptions.register_custom_ops_library`` before a session opens a file with native operators.

    Raises:
        KernelsMissingError: the kernels are not built.
    """
    load()
    return str(FILE)


def register_operators(options: 'SessionOptions') -> 'SessionOptions':
    """Let sessions of ONNX Runtime with these options open files with native operators, where the kernels are built."""
    if available():
        options.register_custom_ops_library(onnxruntime_library())
    return options


def run(program: 'Tensor', weights: 'Tensor', images: 'Tensor', result: 'Tensor', threads: int) -> None:
    """Run a program on float32 images, writing ``result``; all tensors are contiguous and on the CPU.

    Raises:
        ValueError: the program, its weights or the images do not fit.
        KernelsMissingError: the kernels are not built.
    """
    message = ctypes.create_string_buffer(512)
    failed = load().cnv2_run(
        program.data_ptr(), program.numel(), weights.data_ptr(), weights.numel(), images.data_ptr(), *images.shape,
        result.data_ptr(), _Shape(*result.shape[1:]), threads, message, len(message),
    )  # fmt: skip
    if failed:
        raise ValueError(f'{message.value.decode(errors="replace")}.')


def profile(program: 'Tensor', weights: 'Tensor', images: 'Tensor') -> list[tuple[str, float]]:
    """Run a program on one thread, see :func:`run`; name and milliseconds of each instruction, in their order.

    Raises:
        ValueError: the program, its weights or the images do not fit.
        KernelsMissingError: the kernels are not built.
    """
    measure = getattr(load(), 'cnv2_profile', None)
    if measure is None:
        raise KernelsMissingError('the native kernels are of a build that cannot be timed; install cnv2_plugin again.')
    address, size = ctypes.c_void_p, ctypes.c_int64
    measure.argtypes = [address, size, address, size, address, *[size] * 4, address, address, address, size]
    measure.restype = size
    message, most = ctypes.create_string_buffer(512), program.numel()
    kinds, nanoseconds = (ctypes.c_int32 * most)(), (ctypes.c_int64 * most)()
    count = measure(
        program.data_ptr(), most, weights.data_ptr(), weights.numel(), images.data_ptr(), *images.shape, kinds,
        nanoseconds, message, len(message),
    )  # fmt: skip
    if count < 0:
        raise ValueError(f'{message.value.decode(errors="replace")}.')
    names = {number: name for name, number in OPERATIONS.items()}
    return [(names[kinds[i]], nanoseconds[i] / 1e6) for i in range(count)]

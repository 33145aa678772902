"""Lets every allocation and every instruction of a call fail in turn, and calls again (run by test_builds.py)."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cnv2_plugin.deploy import export_onnx, lower
from cnv2_plugin.kernels.library import load, register_operators
from cnv2_plugin.kernels.operator import native_stages
from cnv2_plugin.kernels.program import Program
from tests.kernels.cases import finished, in_bytes, native_form

ARCH = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4,
            sparse_factor=2, head_width=21)  # fmt: skip
SHUFFLED = dict(channels=(16, 24), repeats=(2, 2), stem_width=16, final_width=24, sparse_factor=2, with_sfr=True)
SIZE = (3, 32, 32)


Call = Callable[[Tensor], Tensor]


def opener(model: nn.Module, path: Path, threads: int) -> Callable[[], Call]:
    """Opens the native file of a model in ONNX Runtime."""
    import onnxruntime

    export_onnx(model, path, SIZE, native=True)
    options = register_operators(onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads

    def open_file() -> Call:
        session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
        return lambda x: torch.from_numpy(session.run(None, {'input': x.numpy()})[0])

    return open_file


def fail_everywhere(make: Callable[[], Call], images: Tensor) -> int:
    """How many events there were; each that was told to fail ended the call with its reason, or did no harm."""
    kernels = load()
    kernels.cnv2_fail_at.argtypes = [ctypes.c_int64]
    expected, event, told = make()(images), 0, 0
    while True:
        event += 1
        for size in range(34, 51):
            native_stages(torch.zeros(1, 1, size, size), *COPY)  # so that no program is kept from before
        call = None
        kernels.cnv2_fail_at(event)
        try:
            call = make()
            assert torch.equal(call(images), expected), event
        except Exception as error:
            told += 1
            assert 'not enough memory for the' in str(error) or 'failed as it was told to' in str(error), error
        failed = kernels.cnv2_has_failed()
        kernels.cnv2_fail_at(0)
        if not failed:
            assert told > 20, told
            return event
        assert torch.equal((call or make())(images), expected), event


def copies() -> tuple[Tensor, Tensor, list[int]]:
    """A program that copies a channel."""
    program = Program(1, 1)
    program.load(program.add_map(1, 0))
    program.store(0, [0])
    return program.weights(), program.words(), [1]


COPY = copies()

if __name__ == '__main__':
    models = {
        'dense': finished('condensenetv2', arch=ARCH, num_classes=5),
        'shuffled': finished('sfr_shufflenetv2', arch=SHUFFLED, num_classes=5),
    }
    for name, model in models.items():
        for threads in (1, 3):
            torch.set_num_threads(threads)
            form = native_form(model, SIZE)
            makers = [lambda form=form: form, opener(model, Path(sys.argv[1], f'{name}{threads}.onnx'), threads)]
            for make, runtime in zip(makers, ('pytorch', 'onnxruntime')):
                for batch in (1, 3):
                    with torch.no_grad():
                        print(
                            name, threads, runtime, batch, fail_everywhere(make, torch.randn(batch, *SIZE)), flush=True
                        )
    of_bytes = finished('condensenetv2', arch=ARCH, num_classes=5)
    of_bytes.switch_to_deploy()
    form = lower(in_bytes(of_bytes), SIZE, 'native', verify=False)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with torch.no_grad():
            print('bytes', threads, fail_everywhere(lambda: form, torch.randn(2, *SIZE)), flush=True)

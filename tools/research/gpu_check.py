"""Training steps, inference and exactness on one CUDA card, within a budget of seconds: ``bash tools/gpu_check.sh``."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import timm  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import cnv2_plugin  # noqa: E402, F401  (registers the models)
from cnv2_plugin.benchmark import count_mult_adds, machine, random_finished  # noqa: E402
from cnv2_plugin.benchmark.peers import nearest_peers  # noqa: E402
from cnv2_plugin.commands._output import print_table, write_json  # noqa: E402
from cnv2_plugin.deploy import condense, export_onnx, lower  # noqa: E402
from cnv2_plugin.deploy.timing import interleave  # noqa: E402
from cnv2_plugin.sparsify import pack_model  # noqa: E402
from tools.research.authors_form import restated  # noqa: E402

TOLERANCE = 1e-4
PEER = 'ShuffleNetV2'


class Budget:
    """Seconds that are left; what no time is left for is named instead of measured."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float) -> bool:
        """Whether something that takes about so long may start."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False


def main(argv: Optional[list[str]] = None) -> int:
    """Measure, print and write; returns the exit status: 1 where a form computes something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('models', nargs='*', default=['condensenetv2_a', 'condensenetv2_c'])
    parser.add_argument('--device', default='cuda', help='cpu tries the script itself')
    parser.add_argument('--budget', type=float, default=450.0, help='seconds (default 450)')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 32, 256])
    parser.add_argument('--train-batch', type=int, default=128)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--json', help='also write the figures to this file')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        print('There is no CUDA device on this machine, so nothing was measured.')
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    card = torch.cuda.get_device_name() if args.device == 'cuda' else 'the CPU'
    budget, rows, steps = Budget(args.budget), [], []
    for name in args.models:
        torch.manual_seed(0)
        model = random_finished(timm.create_model(name))
        work = count_mult_adds(condense(model), (3, args.size, args.size))
        peer = nearest_peers(work, (3, args.size, args.size), (PEER,))
        rows += list(inference(name, model, peer, args, budget))
        steps += list(training(name, model, peer, args, budget))
    header = ['model', 'form', 'runtime', 'batch', 'min ms', 'largest relative difference']
    print_table(f'Inference on {card}, float32', header, rows, markdown=True)
    print()
    header = ['model', 'form', 'runtime', 'batch', 'min ms a step']
    print_table(f'Training on {card}, bfloat16, channels last', header, steps, markdown=True)
    print(f'\nMeasured on {card}, PyTorch {torch.__version__}.')
    if budget.left_out:
        print(f'No time was left for {", ".join(budget.left_out)}; raise --budget.')
    if args.json:
        content = {'card': card, 'machine': machine(), 'inference': rows, 'training': steps}
        write_json(args.json, {**content, 'left_out': budget.left_out})
    wrong = [row[:4] for row in rows if row[5] != '' and not float(row[5]) < TOLERANCE]
    if wrong:
        print(f'These compute something else: {wrong}', file=sys.stderr)
    return int(bool(wrong))


def inference(name: str, model: nn.Module, peers: dict, args: argparse.Namespace, budget: Budget) -> Iterator[list]:
    """Rows of every form in every runtime; each is compared with the masked form in float64 on the CPU.

    ONNX Runtime copies images to the card and results from it.
    """
    size = (3, args.size, args.size)
    forms = {'training': model, 'condensed': condense(model), 'lowered': lower(model, size), **peers}
    every = torch.randn(max(args.batches), *size)
    exact = {form: module for form, module in forms.items() if form not in peers}
    with torch.no_grad():
        expected = deepcopy(model).double().eval()(every[:2].double())
    for batch in args.batches:
        images = every[:batch].to(args.device)
        runners: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
        with TemporaryDirectory() as folder:
            for form, module in forms.items():
                here = deepcopy(module).to(args.device).eval()
                runners[form, 'PyTorch'] = here
                if budget.allows(f'{name}, {form}, torch.compile, batch {batch}', 60):
                    torch._dynamo.reset()
                    runners[form, 'torch.compile'] = torch.compile(here, dynamic=False)
                session = onnxruntime_runner(module, Path(folder) / f'{form}.onnx', size, args.device)
                if session is not None:
                    runners[form, 'ONNX Runtime'] = session
            differences = {}
            for key, run in runners.items():
                if key[0] in exact:
                    with torch.no_grad():
                        actual = run(images)[:2].double().cpu()
                    differences[key] = ((actual - expected[:batch]).abs().max() / expected.abs().max()).item()
            timings = measure({key: _bound(run, images) for key, run in runners.items()}, args)
        for (form, runtime), milliseconds in timings.items():
            difference = differences.get((form, runtime))
            yield [name, form, runtime, batch, f'{milliseconds:.3f}', '' if difference is None else f'{difference:.1e}']


def training(name: str, model: nn.Module, peers: dict, args: argparse.Namespace, budget: Budget) -> Iterator[list]:
    """Rows of training steps, compiled: our two forms, the authors' restated, and a ShuffleNetV2."""
    packed = deepcopy(model)
    pack_model(packed)
    runners = {}
    for form, module in {'masked': deepcopy(model), 'packed': packed, 'authors': restated(model), **peers}.items():
        if budget.allows(f'training of {name}, {form}', 75):
            runners[form] = _step(module, args)
    for form, milliseconds in measure(runners, args).items() if runners else ():
        yield [name, form, 'torch.compile', args.train_batch, f'{milliseconds:.3f}']


def onnxruntime_runner(
    module: nn.Module, file: Path, size: tuple[int, int, int], device: str
) -> Optional[Callable[[Tensor], Tensor]]:
    """A file of a form in ONNX Runtime on the device; None where ONNX Runtime does not know it."""
    import onnxruntime

    provider = 'CUDAExecutionProvider' if device == 'cuda' else 'CPUExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        return None
    if not file.exists():
        export_onnx(module, file, size, optimize=False)
    session = onnxruntime.InferenceSession(str(file), providers=[provider])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0])


def measure(runners: dict[Any, Callable[[], object]], args: argparse.Namespace) -> dict[Any, float]:
    """Least milliseconds of each over interleaved rounds, waiting for the device."""

    def waiting(run: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            run()
            if args.device == 'cuda':
                torch.cuda.synchronize()

        return timed

    timings = interleave({key: waiting(run) for key, run in runners.items()}, args.rounds, warmup=3)
    return {key: timing.min for key, timing in timings.items()}


def _bound(run: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return run(images)

    return call


def _step(module: nn.Module, args: argparse.Namespace) -> Callable[[], object]:
    """One step of training in bfloat16, channels last and compiled."""
    module = module.to(args.device, memory_format=torch.channels_last).train()
    images = torch.randn(args.train_batch, 3, args.size, args.size, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.train_batch,), device=args.device)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3, 0.9, nesterov=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, dynamic=False)

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16):
            loss = nn.functional.cross_entropy(compiled(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


if __name__ == '__main__':
    sys.exit(main())

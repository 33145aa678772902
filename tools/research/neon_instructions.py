"""Counts the instructions that native kernels execute for an image on ARM64, under qemu, beside an older checkout's.

It takes qemu-aarch64 with an ARM64 glibc, gcc and ziglang. What a second image adds is counted: nothing of start-up.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tools.research.tables import markdown  # noqa: E402

FLAGS = '-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -pthread -DCNV2_DOTPROD'.split()
SETS = {'kernels_dotprod': ['-mcpu=generic+dotprod']}
"""Flags of sources that are compiled for one instruction set."""
FORMS = {'float32': 'max', 'int8': 'cortex-a53', 'int8 with dot product': 'max'}
"""Processors that qemu is."""
CREATE = """
import os, sys, timm, torch, cnv2_plugin
from cnv2_plugin.benchmark import random_finished
from cnv2_plugin.deploy import condense
torch.manual_seed(0)
torch.save(condense(random_finished(timm.create_model(sys.argv[1]))).state_dict(), sys.argv[2])
"""
WRITE = """
import sys, timm, torch, cnv2_plugin
from cnv2_plugin.deploy import lower
name, checkpoint, size, target, *int8 = sys.argv[1:]
model = timm.create_model(name, deploy=True).eval()
model.load_state_dict(torch.load(checkpoint, weights_only=True))
torch.manual_seed(1)
shape = 3, int(size), int(size)
images = torch.randn(2, *shape)
form = lower(model, shape, 'native', **(dict(int8=[images[:1]], verify=False) if int8 else {})).fused
with torch.no_grad():
    made = form(images)
for count in (1, 2):
    sizes = torch.tensor([form.plan.numel(), form.weights.numel(), count, *shape, *made.shape[1:]])
    parts = sizes.int(), form.plan, form.weights, images
    with open(f'{target}.{count}', 'wb') as file:
        file.write(b''.join(part.contiguous().numpy().tobytes() for part in parts))
"""


def python(checkout: Path, code: str, *arguments: object) -> None:
    """Run code with a checkout's package."""
    environment = {**os.environ, 'PYTHONPATH': str(checkout)}
    subprocess.run([sys.executable, '-c', code, *map(str, arguments)], check=True, env=environment)


def build(checkout: Path, compiler: list[str], folder: Path) -> Path:
    """A checkout's kernels for ARM64, as its wheels have them."""
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str:
        made = folder / f'{source.stem}.o'
        subprocess.run([*compiler, *FLAGS, *SETS.get(source.stem, []), '-c', source, '-o', made], check=True)
        return str(made)

    sources = [source for source in (checkout / 'cnv2_plugin/kernels/csrc').glob('*.cpp') if 'avx' not in source.stem]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([*compiler, '-shared', '-pthread', '-s', *objects, '-o', folder / 'kernels.so'], check=True)
    return folder / 'kernels.so'


def count(emulator: list[str], library: Path, case: Path, out: Path) -> int:
    """Instructions that one image takes."""
    program = [*emulator, '-plugin', out / 'plugin.so', out / 'answer', library]
    one, two = (
        int(subprocess.run([*program, f'{case}.{images}', '1', out / 'result'], check=True, capture_output=True).stderr)
        for images in (1, 2)
    )
    return two - one


def main() -> None:
    """Build, write the cases, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', default=['condensenetv2_a', 'condensenetv2_c'], metavar='NETWORK')
    parser.add_argument(
        '--older', type=Path, metavar='CHECKOUT', help='folder of another state, with its kernels built'
    )
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--compiler', default=f'{sys.executable} -m ziglang c++ -target aarch64-linux-gnu.2.17')
    parser.add_argument('--sysroot', default='/usr/aarch64-linux-gnu', help='folder of the ARM64 glibc')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/neon_instructions'))
    args = parser.parse_args()
    out, older, compiler = args.out.resolve(), args.older and args.older.resolve(), shlex.split(args.compiler)
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ['gcc', '-shared', '-fPIC', '-O2', HERE / 'count_instructions.c', '-o', out / 'plugin.so'], check=True
    )
    in_c = [word if word != 'c++' else 'cc' for word in compiler]
    subprocess.run([*in_c, ROOT / 'tests/kernels/answer.c', '-ldl', '-o', out / 'answer'], check=True)
    library = build(ROOT, compiler, out / 'now')
    older_library = build(older, compiler, out / 'older') if older else None
    print(markdown(['network', 'older', *FORMS, 'over older', 'int8 over float32', 'with dot product'], [
        row(name, args, out, library, older_library) for name in args.networks
    ]))  # fmt: skip


def row(name: str, args: argparse.Namespace, out: Path, library: Path, older_library: Optional[Path]) -> list[str]:
    """Millions of instructions of one network, and ratios."""
    checkpoint = out / f'{name}.pth'
    python(ROOT, CREATE, name, checkpoint)
    found = {}
    for form, processor in FORMS.items():
        case = out / f'{name}.{form[:4]}'
        if not form.endswith('product'):
            python(ROOT, WRITE, name, checkpoint, args.size, case, *(['int8'] if form == 'int8' else []))
        found[form] = count(['qemu-aarch64', '-cpu', processor, '-L', args.sysroot], library, case, out)
    before = 0
    if older_library:
        python(args.older.resolve(), WRITE, name, checkpoint, args.size, out / f'{name}.older')
        emulator = ['qemu-aarch64', '-cpu', 'max', '-L', args.sysroot]
        before = count(emulator, older_library, out / f'{name}.older', out)
    plain, small, dotted = found.values()
    millions = (f'{value / 1e6:.1f}' if value else '' for value in (before, *found.values()))
    over = f'{plain / before:.3f}' if before else ''
    return [name, *millions, over, f'{small / plain:.3f}', f'{dotted / plain:.3f}']


if __name__ == '__main__':
    main()

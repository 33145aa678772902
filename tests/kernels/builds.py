"""Builds of the kernels for tests: with sanitizers, with faults, as programs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CSRC = ROOT / 'cnv2_plugin/kernels/csrc'
X86, ARM64 = (os.uname().machine in names for names in (('x86_64',), ('aarch64', 'arm64')))
AVX2 = ['-mavx2', '-mfma']
AVX512 = [*AVX2, '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-w']
SETS = {
    'kernels_avx2': AVX2, 'kernels_avx512': AVX512, 'kernels_avx512vnni': [*AVX512, '-mavx512vnni'],
    'kernels_dotprod': ['-march=armv8.2-a+dotprod'],
}  # fmt: skip
"""Flags of sources that are compiled for one instruction set."""
OF_THIS_MACHINE = SETS.keys() - {'kernels_dotprod'} if X86 else {'kernels_dotprod'} if ARM64 else set()


def build(target: Path, *flags: str, extra: tuple[str, ...] = (), baseline: bool = False) -> Path:
    """Compile the kernels with flags and further sources of this folder: a library where the target is called ``.so``.

    Args:
        target: file to write; object files lie beside it.
        flags: of compiler and linker.
        extra: sources in this folder.
        baseline: leave the kernels of newer processors out.
    """
    every = [*flags, '-std=c++17', '-fPIC', '-pthread', '-ffp-contract=fast']
    if not baseline:
        every += ['-DCNV2_X86'] if X86 else ['-DCNV2_DOTPROD'] if ARM64 else []
    objects = []
    for source in [*sorted(CSRC.glob('*.cpp')), *(HERE / name for name in extra)]:
        if source.stem in SETS and (baseline or source.stem not in OF_THIS_MACHINE):
            continue
        objects.append(str(target.with_name(f'{target.stem}-{source.stem}.o')))
        subprocess.run(['g++', *every, *SETS.get(source.stem, []), '-c', str(source), '-o', objects[-1]], check=True)
    kind = ['-shared', '-Wl,-Bsymbolic'] if target.suffix == '.so' else []
    subprocess.run(['g++', *every, *kind, *objects, '-o', str(target)], check=True)
    return target


def sanitized(library: Path, *names: str) -> dict[str, str]:
    """Environment of a Python that loads a library built with sanitizers (``asan``, ``ubsan``)."""
    paths = [subprocess.run(['g++', f'-print-file-name=lib{name}.so'], capture_output=True, text=True).stdout.strip()
             for name in names]  # fmt: skip
    return {
        'CNV2_TEST_KERNELS': str(library), 'LD_PRELOAD': ' '.join(paths), 'UBSAN_OPTIONS': 'print_stacktrace=1',
        'ASAN_OPTIONS': 'detect_leaks=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1',
    }  # fmt: skip


def run_python(environment: dict[str, str], *arguments: str, seconds: float = 1800) -> str:
    """What Python prints with an environment; fails where it does not end well or in time."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=seconds,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def run_tests(environment: dict[str, str], *options: str) -> None:
    """The kernel tests in another process, with other kernels."""
    names = (
        'kernels/test_kernels.py',
        'kernels/test_bytes.py',
        'kernels/test_bytes_3x3.py',
        'kernels/test_programs.py',
        'fuzz/test_programs.py',
    )
    tests = [str(HERE.parent / name) for name in names]
    run_python(environment, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist', *tests, *options)

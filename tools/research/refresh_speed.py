"""Measure again what the pages about speed show, and write it where it stands; takes a machine with nothing else to do.

``python tools/research/refresh_speed.py front`` does one part, without names all; ``--list`` prints the commands. A
part is what stands between ``<!--NAME-->`` and ``<!--/NAME-->``.
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.research.tables import markdown  # noqa: E402

BENCHMARK = 'python -m cnv2_plugin benchmark --markdown --quiet'
FRONT = f'{BENCHMARK} --front --rounds 25 --png docs/images/front.png'
README = """Published ImageNet accuracy over latency of one 224x224 image among timm's small classifiers: one thread,
ONNX Runtime, AMD EPYC with AVX2. `standard` are the operators that `cnv2 deploy` writes, `native` our kernels. With
these A is the fastest network of its accuracy, in int8 B too; C is not. The table stands in
[deployment](docs/deployment.md#the-front); [speed](docs/speed.md) has other forms, processors and runtimes.

![accuracy over latency](docs/images/front.png)"""
RESULTS = 'tools/research/results/speed.md'


@dataclass(frozen=True)
class Part:
    """One marked place.

    Attributes:
        page: file that it stands in.
        commands: what to run; each prints tables.
        tables: which of a command's tables to keep, by default all.
        text: what stands in front of them.
        side_by_side: one table of least milliseconds, forms and runtimes side by side.
        columns: one table of least milliseconds, what each table measured side by side under these titles.
    """

    page: str
    commands: tuple[str, ...]
    tables: Optional[tuple[int, ...]] = None
    text: str = ''
    side_by_side: bool = False
    columns: tuple[str, ...] = ()


def _profile(name: str) -> tuple[str, str]:
    file = f'work_dirs/{name}-native.onnx'
    return f'python -m cnv2_plugin export {name} --out {file} --native', f'{BENCHMARK} --profile {file} --rounds 100'


PARTS = {
    'front': Part('docs/deployment.md', (FRONT,), (1,), '![accuracy over latency](images/front.png)\n\n'),
    'front-readme': Part('README.md', (FRONT,), (), README),
    'native': Part('docs/deployment.md', ('python tools/research/native_speed.py --older work_dirs/older',)),
    'pytorch': Part(
        'docs/deployment.md',
        (
            f'{BENCHMARK} --forms training condensed lowered native --runtimes eager compile --batch 1 --rounds 30',
            f'{BENCHMARK} --forms training condensed lowered native --runtimes eager --batch 32 --rounds 5',
        ),
        (0,),
        side_by_side=True,
    ),
    'instructions': Part(RESULTS, (*_profile('condensenetv2_a'), *_profile('condensenetv2_c'))),
    'networks': Part(
        RESULTS,
        (
            'python tools/research/benchmark.py --forms authors condensed lowered native --runtimes onnxruntime '
            '--peers ShuffleNetV2 MobileNetV3 GhostNetV2 EfficientNet-Lite --rounds 60 --markdown --quiet --png '
            'docs/images/latency.png',
        ),
        (0,),
    ),
    'threads': Part(
        RESULTS,
        (f'{BENCHMARK} --forms native --runtimes onnxruntime --batch 1 16 --threads 1 2 --rounds 30',),
        columns=('1 image, 1 thread', '16 images, 1 thread', '1 image, 2 threads', '16 images, 2 threads'),
    ),
    'runtimes': Part(
        RESULTS,
        (
            f'{BENCHMARK} condensenetv2_a --forms lowered --rounds 60 --runtimes eager compile torch_export '
            'onnxruntime openvino ncnn executorch',
        ),
        (0,),
    ),
}


def tables_of(text: str) -> list[str]:
    """The Markdown tables in what a command printed, which may follow one another without a line between them."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    starts = [i - 1 for i, line in enumerate(lines) if i and re.fullmatch(r'[|\s:-]+', line)]
    return ['\n'.join(lines[start:end]) for start, end in zip(starts, [*starts[1:], len(lines)])]


def side_by_side(tables: list[str], titles: tuple[str, ...] = ()) -> str:
    """One table of the least milliseconds in several: a row a table and model, a column a form and runtime.

    With titles a row is a model and a column a table, each of one form and runtime.
    """
    found: dict[tuple[int, str], dict[str, str]] = {}
    for i, table in enumerate(tables):
        header, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
        for row in (dict(zip(header, cells)) for cells in rows):
            place, column = (0, titles[i]) if titles else (i, f'{row["form"]}, {row["runtime"]}')
            found.setdefault((place, row['model']), {})[column] = row['min ms']
    columns = list(dict.fromkeys(column for cells in found.values() for column in cells))
    rows = [[model, *(cells.get(column, '') for column in columns)] for (_, model), cells in found.items()]
    return markdown(['model', *columns], rows).rstrip()


def replaced(page: str, name: str, content: str) -> str:
    """A page with other content in a marked place.

    Raises:
        ValueError: the page has no such place.
    """
    pattern = re.compile(rf'(<!--{name}-->\n).*?(<!--/{name}-->)', re.S)
    if not pattern.search(page):
        raise ValueError(f'the page has no place between <!--{name}--> and <!--/{name}-->.')
    return pattern.sub(lambda match: f'{match[1]}{content}\n\n{match[2]}', page, count=1)


def main(argv: Optional[list[str]] = None) -> int:
    """Run the commands, each once, and rewrite the pages after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', default=list(PARTS), metavar='PART', help=', '.join(PARTS))
    parser.add_argument('--list', action='store_true', help='print the commands and run nothing')
    args = parser.parse_args(argv)
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        parser.error(f'{", ".join(unknown)} is no part; choose from {", ".join(PARTS)}.')
    (ROOT / 'work_dirs').mkdir(exist_ok=True)
    printed: dict[str, list[str]] = {}
    for name in args.parts:
        part, tables = PARTS[name], []
        for command in part.commands:
            if command not in printed:
                print(f'{name}: {command}', flush=True)
                printed[command] = [] if args.list else tables_of(_run(command))
            tables += [table for i, table in enumerate(printed[command]) if part.tables is None or i in part.tables]
        if not args.list:
            page = ROOT / part.page
            joins = part.side_by_side or part.columns
            joined = side_by_side(tables, part.columns) if joins else '\n\n'.join(tables)
            page.write_text(replaced(page.read_text(), name, f'\n{part.text}{joined}'.rstrip()))
    return 0


def _run(command: str) -> str:
    words = [sys.executable if word == 'python' else word for word in command.split()]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == '__main__':
    sys.exit(main())

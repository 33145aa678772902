"""Code blocks of Markdown files, and how each kind is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cnv2_plugin.cli import COMMANDS, main
from cnv2_plugin.deploy.runtimes import RUNTIMES
from tests.helpers import has_compiler, installed, lacks_kernels

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)

STAND_INS = {
    'bash tools/quickstart.sh': 'bash -n "$ROOT/tools/quickstart.sh" && '
    '"$PYTHON" "$ROOT/tools/quickstart.py" --epochs 1 --rounds 1 > /dev/null 2>&1',
    'python tools/prepare_fashion_mnist.py': '"$PYTHON" tools/prepare_fashion_mnist.py data/fashion_mnist --digits',
    'bash tools/run_tests.sh': 'bash -n "$ROOT/tools/run_tests.sh"',
    'python tools/research/benchmark.py': '"$PYTHON" tools/research/benchmark.py --help > /dev/null',
    'python tools/research/compare_surgery.py': '"$PYTHON" tools/research/compare_surgery.py --help > /dev/null',
}
"""What is run in place of a command with this beginning, which would install packages, take long or run these tests."""

SHORTER = {
    'train': ['--cfg-options', 'train_dataloader.dataset.indices=256', 'val_dataloader.dataset.indices=250'],
    'test': ['--cfg-options', 'test_dataloader.dataset.indices=250'],
    'benchmark': ['--input-size', '3', '64', '64', '--rounds', '1', '--warmup', '1', '--quiet'],
}
"""What is added to commands that would take minutes."""

FAST_MODEL = 'sfr_shufflenetv2_x0_5'
"""Stands for the networks of `FAST_PAGES`: its files are written in seconds."""

FAST_PAGES = ('README', 'deployment')
"""Pages that write files of one network."""

OPTIONAL = ('lightning.pytorch', 'openvino', 'transformers')
"""Packages of blocks that are run only where they are installed."""


@cache
def smallest_model() -> str:
    """The timm name of a network of four blocks, which stands for those of benchmarks: compilers take it in seconds."""
    import timm

    def sfr_shufflenetv2_of_the_pages(pretrained: bool = False, **options):
        arch = dict(channels=(24, 48), repeats=(2, 2), final_width=64)
        return timm.create_model('sfr_shufflenetv2', arch=arch, **options)

    return timm.models.register_model(sfr_shufflenetv2_of_the_pages).__name__


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and its line."""

    language: str
    text: str
    line: int

    @property
    def is_config(self) -> bool:
        """Whether it is an OpenMMLab config, or a part of one."""
        return self.language == 'python' and bool(re.search(r'^(_base_|custom_hooks) = ', self.text, re.MULTILINE))


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text()
    if page.stem in FAST_PAGES:
        text = text.replace('condensenetv2_a', FAST_MODEL)
    return [Block(m[1], m[2], text.count('\n', 0, m.start()) + 1) for m in _BLOCK.finditer(text)]


def commands(block: Block) -> list[list[str]]:
    """Words of each command of a bash block, without comments; continued lines are joined."""
    lines = block.text.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_python(block: Block, page: Path, namespace: dict) -> None:
    """Run a block in the page's namespace, unless it takes a package, a version or kernels that are not installed."""
    where = f'{page.name}, block in line {block.line}'
    if "'local-dir:" in block.text and installed('timm<1.0.16'):
        return leave_out(where, 'timm 1.0.16')
    for name in OPTIONAL:
        if f'import {name}\n' in block.text and find_spec(name.split('.')[0]) is None:
            return leave_out(where, name)
    if lacks_kernels() and re.search(r"onnxruntime_library|'native'", block.text):
        return leave_out(where, 'kernels')
    code = compile('\n' * block.line + block.text, str(page), 'exec')
    exec(code, namespace)


def run_config(block: Block, page: Path) -> None:
    """Read a config through mmengine, and build what it defines, unless it is not installed."""
    if find_spec('mmengine') is None:
        return leave_out(f'{page.name}, config in line {block.line}', 'mmengine')
    for name in ('mmpretrain', 'mmdet'):
        if f'{name}::' in block.text and find_spec(name) is None:
            return leave_out(f'{page.name}, config in line {block.line}', name)
    from mmengine.config import Config
    from mmengine.registry import HOOKS, MODELS, DefaultScope, init_default_scope

    path = Path(f'{page.stem}_{block.line}.py')
    path.write_text(block.text)
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(None):
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        if 'model' in cfg:
            model = cfg.model
            if isinstance(model.get('backbone'), dict) and 'init_cfg' in model.backbone:
                model.backbone.init_cfg = None
            MODELS.build(model)
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build(hook)


def run_bash(block: Block) -> None:
    """Run commands one after the other; ours in this process, as ``cnv2`` itself would."""
    environment = {
        **os.environ,
        'ROOT': str(ROOT),
        'PYTHON': sys.executable,
        'PYTHONPATH': str(ROOT),
        'PYTHONWARNINGS': 'ignore',
        'PATH': f'{Path(sys.executable).parent}:/usr/bin:/bin',
    }
    for words in commands(block):
        if words[0] == 'cnv2':
            run_cnv2(words[1:])
        elif words[:2] != ['pip', 'install']:
            command = shlex.join(words)
            command = next((other for start, other in STAND_INS.items() if command.startswith(start)), command)
            subprocess.run(['bash', '-euo', 'pipefail', '-c', command], check=True, env=environment)


def run_cnv2(arguments: list[str]) -> None:
    """``cnv2`` in this process, unless it takes what is not installed; ``--help`` ends well too."""
    command = ' '.join(arguments)
    if arguments[0] == 'export' and lacks_runtime(arguments):
        return leave_out(command, 'its runtime')
    if lacks_kernels() and '--native' in arguments:
        return leave_out(command, 'kernels')
    for form, what in [('native', 'kernels')] * lacks_kernels() + [('compile', 'a compiler')] * (not has_compiler()):
        if form in arguments:
            leave_out(f'{form} of {command}', what)
            arguments = [argument for argument in arguments if argument != form]
    if arguments[0] == 'benchmark':
        options = next(i for i, argument in enumerate(arguments) if argument.startswith('-'))
        arguments = ['benchmark', smallest_model(), *arguments[options:]]
        arguments += ['--peers', 'ShuffleNetV2'] if '--peers' in arguments else []
    try:
        code = main([*arguments, *SHORTER.get(arguments[0], [])])
    except SystemExit as exit_:
        code = exit_.code
    assert code in (0, None), f'cnv2 {" ".join(arguments)} ended with {code}'


class LeftOutWarning(UserWarning):
    """A part of a page that does not run on this stack."""


def leave_out(what: str, missing: str) -> None:
    """Tell what was not run, for pytest's summary of warnings."""
    warnings.warn(f'{what}: left out without {missing}', LeftOutWarning, stacklevel=2)


def lacks_runtime(arguments: list[str]) -> bool:
    """Whether packages of the runtime that ``--out`` names are missing."""
    suffix = Path(arguments[arguments.index('--out') + 1]).suffix
    packages = [name for kind in RUNTIMES.values() if kind.suffixes[0] == suffix for name in kind.packages]
    return any(find_spec(name) is None for name in packages)


def knows(words: list[str]) -> bool:
    """Whether a command of a bash block exists."""
    if words[0] == 'cnv2':
        return words[1] in COMMANDS
    return any((ROOT / word).exists() for word in words) or shutil.which(words[0]) is not None

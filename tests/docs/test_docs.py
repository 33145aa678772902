"""Every code block of README and docs is run, in order, page by page, in a folder of its own."""

import ast
import importlib
import re
import warnings
from importlib.util import find_spec

import pytest
import torch

from tests.docs.blocks import PAGES, ROOT, LeftOutWarning, blocks, commands, knows, run_bash, run_config, run_python

HEAVY = ('README', 'deployment', 'method', 'speed', 'surgery', 'variants')
NEEDS = {
    'README': ('matplotlib', 'mmengine', 'onnx', 'onnxruntime'),
    'deployment': ('onnx', 'onnxruntime'),
    'method': ('matplotlib',),
    'openmmlab': ('mmdet', 'mmpretrain'),
    'serving': ('onnx', 'onnxruntime', 'kernels'),
    'speed': ('matplotlib', 'onnx', 'onnxruntime'),
    'surgery': ('matplotlib', 'onnx', 'onnxruntime'),
}
"""Packages without which a page cannot run; the other pages run on every stack, but for blocks that are told."""

LANGUAGES = ('python', 'bash', '', 'text', 'console', 'html', 'json')


def page_parameters():
    for page in PAGES:
        marks = [pytest.mark.slow] if page.stem in HEAVY else []
        yield pytest.param(page, id=page.stem, marks=[*marks, pytest.mark.needs(*NEEDS.get(page.stem, ()))])


@pytest.mark.parametrize('page', page_parameters())
def test_every_block_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    if find_spec('matplotlib'):
        importlib.import_module('matplotlib').use('Agg')
    torch.manual_seed(0)
    namespace = {'__name__': page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', LeftOutWarning)
        for block in blocks(page):
            try:
                if block.is_config:
                    run_config(block, page)
                elif block.language == 'python':
                    run_python(block, page, namespace)
                elif block.language == 'bash':
                    run_bash(block)
            except Exception as error:
                raise AssertionError(f'{page.name}, block in line {block.line}: {error}') from error
    check = CHECKS.get(page.stem)
    if check:
        check(namespace, tmp_path)


def released_file_becomes_a_model(namespace, folder):
    from tests.reference import official

    net = official.small('110-cifar', growth=(8, 8, 16))
    state = official.random_state_dict(net, None, torch.Generator().manual_seed(0))
    torch.save(dict(state_dict=state), folder / 'released.pth')
    with pytest.raises(RuntimeError, match='hswish_from'):
        namespace['from_released_file'](folder / 'released.pth', 7)
    state = official.random_state_dict(official.NETS['110-cifar'], None, torch.Generator().manual_seed(0))
    torch.save(dict(state_dict=state), folder / 'released.pth')
    model, finished = namespace['from_released_file'](folder / 'released.pth', 7)
    assert finished and model.num_classes == 7


def quickstart_drew_its_pictures(namespace, folder):
    for name in ('training', 'lgc', 'sfr', 'sparsity'):
        assert (folder / f'work_dirs/quickstart/{name}.png').stat().st_size > 10_000


CHECKS = {'README': quickstart_drew_its_pictures, 'fine-tuning': released_file_becomes_a_model}


def anchors(page):
    """Anchors of a page's headings."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_pictures_and_commands_exist(page):
    text = page.read_text()
    for target, anchor in re.findall(r'\]\(([^)#]*)(?:#([^)]*))?\)', text):
        if '://' not in target:
            file = page.parent / target if target else page
            assert file.exists(), f'{page.name} points to {target}'
            assert not anchor or anchor in anchors(file), f'{page.name} points to {target}#{anchor}'
    for picture in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', text):
        assert (page.parent / picture).stat().st_size < 200_000, picture
    for block in blocks(page):
        assert block.language in LANGUAGES, f'{page.name}, line {block.line}: {block.language}'
        for words in commands(block) if block.language == 'bash' else ():
            assert knows(words), f'{page.name}, line {block.line}: {words}'
        if block.language == 'python':
            compile(block.text, str(page), 'exec')
    fences = text.count('\n```') + text.startswith('```')
    assert fences == 2 * len(blocks(page)), f'{page.name} has an unclosed block'


def test_no_page_names_this_machine():
    for page in PAGES:
        found = re.search(r'(?<![\w.])/(work|root|tmp|opt|home)/', page.read_text())
        assert not found, f'{page.name}: {found.group()}'


def test_pages_stay_short():
    code = re.compile(r'^```.*?^```$', re.MULTILINE | re.DOTALL)
    assert len(code.sub('', (ROOT / 'README.md').read_text()).split()) <= 1000
    assert sum(len(page.read_text().split()) for page in PAGES[1:]) <= 11_000


def configs_with_hooks():
    """Configs of the pages, of the configs' pages and of docstrings that set ``custom_hooks``."""
    for page in [*PAGES, *sorted((ROOT / 'configs').rglob('*.md'))]:
        for block in blocks(page):
            if re.search(r'^custom_hooks = ', block.text, re.MULTILINE):
                yield pytest.param(block.text, id=f'{page.stem}-{block.line}')
    for path in sorted((ROOT / 'cnv2_plugin').rglob('*.py')):
        for found in re.finditer(r'>>> (custom_hooks = .*(?:\n +\.\.\. .*)*)', path.read_text()):
            yield pytest.param(re.sub(r'\n +\.\.\. ', '\n', found[1]), id=path.stem)


@pytest.mark.parametrize('text', configs_with_hooks())
def test_examples_keep_the_hooks_of_the_base_config(text):
    """A plain list would drop them: EMA, changes of the pipeline."""
    (hooks,) = (node.value for node in ast.parse(text).body if ast.unparse(node).startswith('custom_hooks = '))
    assert any(isinstance(node, ast.Name) and node.id == '_base_' for node in ast.walk(hooks)), text

"""The documentation site: built strictly, complete, and of one piece."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cnv2_plugin.cli import COMMANDS, main
from tests.docs.blocks import ROOT

pytest.importorskip('mkdocs')
Inventory = pytest.importorskip('mkdocstrings').Inventory
pytestmark = pytest.mark.slow

PACKAGES = [
    str(file.parent.relative_to(ROOT)).replace('/', '.')
    for file in sorted((ROOT / 'cnv2_plugin').rglob('__init__.py'))
    if '__all__' in file.read_text()
]
FAULTS = {
    'link': '[a page](nowhere.md)',
    'way out': '[a config](../configs/nowhere.py)',
    'anchor': '[a section](method.md#nowhere)',
    'picture': '![a picture](images/nowhere.png)',
    'reference': '[a name][cnv2_plugin.layers.Nowhere]',
}
"""What a page may get wrong."""


def build(root: Path, site: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'NO_MKDOCS_2_WARNING': 'true'}
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(site)]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """The site of this checkout."""
    folder = tmp_path_factory.mktemp('site')
    result = build(ROOT, folder)
    assert result.returncode == 0 and 'WARNING' not in result.stderr, result.stderr
    return folder


class Page(HTMLParser):
    """Addresses that a page leads to and loads, and the places in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get('id'))
        if tag == 'a' and found.get('href'):
            self.links.append(found['href'])
        if tag in ('img', 'script', 'iframe', 'source') and found.get('src'):
            self.loads.append(found['src'])
        if tag == 'link' and found.get('rel') in ('stylesheet', 'icon', 'preload', 'preconnect'):
            self.loads.append(found['href'])


def test_every_link_and_anchor_leads_somewhere(site):
    pages = {file: Page(file) for file in site.rglob('*.html')}
    assert len(pages) > 30
    wrong = []
    for file, page in pages.items():
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or file.name == '404.html':
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and target in pages and fragment not in pages[target].ids):
                wrong.append(f'{file.relative_to(site)}: {address}')
    assert wrong == []


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.rglob('*.html'):
        outside = [address for address in Page(file).loads if urlsplit(address).scheme not in ('', 'data')]
        assert outside == [], file
    for file in (*site.glob('assets/*.css'), *site.glob('assets/stylesheets/*.css')):
        assert not re.search(r'url\(["\']?https?:|@import', file.read_text()), file


@pytest.mark.parametrize('package', PACKAGES)
def test_reference_has_every_public_name(site, package):
    known = Inventory.parse_sphinx((site / 'objects.inv').open('rb'))
    module = import_module(package)
    for name in module.__all__:
        member = getattr(module, name)
        defined = f'{getattr(member, "__module__", package)}.{getattr(member, "__qualname__", name)}'
        found = known.get(f'{package}.{name}') or known.get(defined)
        assert found and found.uri.startswith('reference/'), f'{package}.{name} is on no page of the reference'


def test_command_line_page_has_every_option(site, capsys):
    text = (site / 'reference/cli.html').read_text()
    for name in COMMANDS:
        assert f'>cnv2 {name}' in text
        with pytest.raises(SystemExit):
            main([name, '--help'])
        for option in re.findall(r'--[a-z][\w-]+', capsys.readouterr().out):
            assert option in text, f'cnv2 {name} {option}'


def test_gallery_has_every_picture(site):
    shown = {Path(address).name for address in Page(site / 'gallery.html').loads}
    pictures = {path.name for path in (ROOT / 'docs/images').iterdir()}
    assert pictures and pictures <= shown


def test_search_finds_pages_names_and_commands(site):
    index = json.loads((site / 'search/search_index.json').read_text())
    titles = ' '.join(entry['title'] for entry in index['docs'])
    for wanted in ('LearnedGroupConv', 'StagedSparsifier', 'cnv2 deploy', 'Questions', 'Architecture'):
        assert wanted in titles
    assert (site / 'search/search_index.js').is_file(), 'search of a site opened as a file'


def test_every_page_and_notebook_stands_in_the_menu(site):
    menu = Page(site / 'faq.html').links
    sources = [*(ROOT / 'docs').glob('*.md'), *(ROOT / 'docs').glob('notebooks/*.ipynb')]
    for path in sources:
        assert path.relative_to(ROOT / 'docs').with_suffix('.html').as_posix() in menu or path.stem == 'faq', path


def test_a_fault_fails_the_build_and_a_new_page_needs_no_entry(tmp_path):
    for name in ('mkdocs.yml', 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('docs', 'configs', 'cnv2_plugin'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('*.so', '__pycache__'))
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    (tmp_path / 'docs/new_page.md').write_text('# New\n\n' + '\n\n'.join(FAULTS.values()))
    layer = tmp_path / 'cnv2_plugin/layers/permute.py'
    layer.write_text(layer.read_text().replace('    """', '    """See :func:`nowhere_known`. ', 1))
    site = tmp_path / 'site'
    result = build(tmp_path, site)
    warnings = [line for line in result.stderr.splitlines() if line.startswith('WARNING')]
    assert result.returncode == 1 and len(warnings) == len(FAULTS) + 1, result.stderr
    for fault in FAULTS.values():
        address = re.search(r'\(([^)#]*)(#.*)?\)$|\[(cnv2.*)\]$', fault)
        wanted = address[3] or (address[2] or address[1]).lstrip('./')
        assert any('new_page.md' in line and wanted in line for line in warnings), (fault, result.stderr)
    assert any('nowhere_known' in line for line in warnings), result.stderr
    assert 'new_page.html' in Page(site / 'index.html').links + Page(site / 'faq.html').links

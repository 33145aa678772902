"""Hooks of mkdocs: pages that are made from the repository, and links that hold both on a git host and on the site."""

from pathlib import Path

from gallery import gallery
from links import Places, rewritten
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import converted
from reference import api_pages, command_page

_places: Places


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/, the reference, the notebooks and the gallery."""
    global _places
    _places = places = Places(Path(config.docs_dir))
    made: dict[str, str | bytes] = {
        **api_pages(places.root),
        'reference/cli.md': command_page(),
        'gallery.md': gallery(places),
    }
    for notebook in sorted(places.docs.glob('notebooks/*.ipynb')):
        made |= converted(notebook)
    for uri, path in places.outside.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from the repository's layout into the site's."""
    path = _places.pages.get(page.file.src_uri)
    return rewritten(markdown, path, page.file.src_uri, _places) if path else markdown

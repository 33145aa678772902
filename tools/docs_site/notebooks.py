"""Notebooks as pages: their cells and stored outputs, nothing is run."""

from pathlib import Path

from nbconvert import MarkdownExporter


def converted(notebook: Path) -> dict[str, str | bytes]:
    """Page and pictures of a notebook by their addresses within the site."""
    stem = f'notebooks/{notebook.stem}'
    resources = dict(unique_key=notebook.stem, output_files_dir=f'{notebook.stem}_files')
    text, resources = MarkdownExporter().from_filename(str(notebook), resources)
    text = f'{text.rstrip()}\n\n[This page as a notebook]({notebook.name})\n'
    return {f'{stem}.md': text, **{f'notebooks/{name}': data for name, data in resources['outputs'].items()}}

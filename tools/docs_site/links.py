"""Where files of the repository stand on the site, and links between them.

A page of ``docs/`` stands at the site's root, everything else at its path in the repository: ``docs/method.md`` is
``method.md``, ``configs/README.md`` stays what it is, and the README is the start page. Of what lies outside of
``docs/``, the site has what pages link to.
"""

import os.path
import re
from pathlib import Path

START = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')
LINK = re.compile(r'(?<=\]\()([^()\s#]+)(#[^()\s]*)?(?=\))')


class Places:
    """Files that the site shows.

    Args:
        docs: folder of the documents, in the repository's root.

    Attributes:
        pages: Markdown file of each page by its address within the site.
        outside: files from outside of the documents' folder, pages among them, by address.
    """

    def __init__(self, docs: Path) -> None:
        self.docs, self.root = docs, docs.parent
        self.pages: dict[str, Path] = {}
        self.outside: dict[str, Path] = {}
        self._follow([*sorted(docs.rglob('*.md')), *(self.root / name for name in START)])

    def _follow(self, queue: list[Path]) -> None:
        """Take in these pages and whatever they link to."""
        while queue:
            path = queue.pop()
            uri = self.address(path)
            if uri in self.pages or uri in self.outside:
                continue
            if self.docs not in path.parents:
                self.outside[uri] = path
            if path.suffix == '.md':
                self.pages[uri] = path
                queue += [found for link, _ in LINK.findall(path.read_text()) if (found := self.target(path, link))]

    def address(self, path: Path) -> str:
        """Address of a file within the site; a notebook's is that of its page."""
        found = path.relative_to(self.docs if self.docs in path.parents else self.root)
        return (found.with_suffix('.md') if found.suffix == '.ipynb' else found).as_posix()

    def target(self, page: Path, link: str) -> Path | None:
        """File that a link of a page leads to, a folder's README for a folder; None for what is not there."""
        path = Path(os.path.normpath(page.parent / link))
        if path.is_dir():
            path /= 'README.md'
        return path if path.is_file() and self.root in path.parents else None


def rewritten(markdown: str, path: Path, uri: str, places: Places) -> str:
    """Links of a page, relative to its address; links to nothing stay, so that the strict build names them."""

    def replace(match: re.Match) -> str:
        target = places.target(path, match[1])
        if target is None:
            return match[0]
        return os.path.relpath(places.address(target), os.path.dirname(uri) or '.') + (match[2] or '')

    return LINK.sub(replace, markdown)

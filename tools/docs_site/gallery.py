"""The gallery: every picture once, with its caption, under the page that explains it."""

import os.path
import re

from links import Places

PICTURE = re.compile(r'!\[([^\]]*)\]\(([^)\s]+)\)')


def gallery(places: Places) -> str:
    """Markdown of the gallery; pictures that no page shows come last."""
    parts, shown = ['# Gallery'], set()
    for uri, path in sorted(places.pages.items(), key=lambda item: (item[0] == 'README.md', item[0])):
        text = path.read_text()
        pictures = {places.target(path, link): caption for caption, link in PICTURE.findall(text)}
        new = {picture: caption for picture, caption in pictures.items() if picture and picture not in shown}
        if new:
            title = re.search(r'^# (.+)$', text, re.MULTILINE)
            parts.append(f'## [{title[1] if title else path.stem}]({uri})')
            parts += [_figure(places.address(picture), caption) for picture, caption in new.items()]
            shown |= set(new)
    rest = [path for path in sorted((places.docs / 'images').glob('*')) if path not in shown]
    if rest:
        parts.append('## More')
        parts += [_figure(places.address(path), path.stem.replace('_', ' ')) for path in rest]
    return '\n\n'.join(parts) + '\n'


def _figure(uri: str, caption: str) -> str:
    link = os.path.normpath(uri)
    return f'[![{caption}]({link}){{ loading=lazy }}]({link})\n\n*{caption}*'

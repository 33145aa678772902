"""Configs that need the folder of the user's data and nothing else: class folders, or a COCO-style JSON.

Images are looked through once before a training starts; classes, lists and batch sizes come from them.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional
from zlib import crc32

from PIL import Image
from tqdm import tqdm

from ..checkpoints.io import staged

if TYPE_CHECKING:
    from mmengine.config import Config

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
PARTS = ('train', 'val')
_EXIF_ORIENTATION = 0x0112


@dataclass
class OwnImages:
    """What a folder holds.

    Attributes:
        classes: names of the classes, in the order of their labels.
        parts: for ``'train'`` and ``'val'``, lines ``path label`` (class folders) or a dict in COCO's format.
        sizes: number of images of each part.
        left_out: one line for each image that cannot be used, with the reason.
        folder: where the paths of a COCO-style JSON start.
    """

    classes: tuple[str, ...]
    parts: dict[str, Any]
    sizes: dict[str, int]
    left_out: list[str]
    folder: str = ''


def fit_to_own_data(cfg: 'Config') -> None:
    """Complete a config that says ``own_data = 'class_folders'`` or ``'coco'`` from its ``data_root``, in place.

    The lists of images are written to ``own_data/`` in its work folder. The config is complete then, and says
    ``own_data = None``: the copy in the work folder needs the data for training and testing only.
    """
    kind, readers = cfg.get('own_data'), dict(class_folders=read_class_folders, coco=read_coco)
    if not kind:
        return
    if kind not in readers:
        raise ValueError(f'own_data is {kind!r}; it takes {" or ".join(map(repr, readers))}.')
    root = Path(cfg.get('data_root') or '')
    if not cfg.get('data_root') or not root.is_dir():
        raise ValueError(
            f'data_root is {cfg.get("data_root")!r}, which is not a folder; give that of your data: '
            '--cfg-options data_root=FOLDER, or name the complete config that a training left in its work folder.'
        )
    images = readers[kind](root)
    if min(images.sizes.values()) < 1 or images.sizes['train'] < 2:
        raise ValueError(
            f'{root} has {images.sizes["train"]} readable images to train on and {images.sizes["val"]} to validate '
            'with; at least 2 and 1 are needed.'
        )
    folder = Path(cfg.work_dir).absolute() / 'own_data'
    for part, content in images.parts.items():
        _write(folder / f'{part}.{"txt" if kind == "class_folders" else "json"}', content)
    _write(folder / 'left_out.txt', images.left_out)
    for part in ('model', 'data_preprocessor'):
        _set_num_classes(cfg.get(part) or {}, len(images.classes))
    _set_loaders(cfg, images, root.absolute(), folder)
    cfg.own_data = None
    _tell(root, images, folder)


def _write(path: Path, content: Any) -> None:
    text = '\n'.join(content) if isinstance(content, list) else json.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path) as [file]:
        file.write_text(text, encoding='utf-8')


def _set_num_classes(cfg: Any, count: int) -> None:
    """Set every ``num_classes`` of a model's config."""
    for key, value in list(cfg.items()):
        if key == 'num_classes':
            cfg[key] = count
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, dict):
                _set_num_classes(part, count)


def _set_loaders(cfg: 'Config', images: OwnImages, root: Path, folder: Path) -> None:
    """Point the loaders at the lists; a batch is no larger than the set, and a last, smaller one is not trained on."""
    for part, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), ('val', cfg.test_dataloader)):
        loader.batch_size = min(loader.batch_size, images.sizes[part])
        loader.drop_last = part == 'train'
        if isinstance(images.parts[part], list):
            loader.dataset.update(
                data_root=str(root), ann_file=str(folder / f'{part}.txt'), classes=list(images.classes)
            )
        else:
            loader.dataset.update(
                data_root='', data_prefix=dict(img=images.folder), ann_file=str(folder / f'{part}.json'),
                metainfo=dict(classes=images.classes),
            )  # fmt: skip
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(folder / 'val.json')


def _tell(root: Path, images: OwnImages, folder: Path) -> None:
    left_out = f'; {len(images.left_out)} left out, see {folder / "left_out.txt"}' if images.left_out else ''
    names = ', '.join(images.classes[:8]) + (', ...' if len(images.classes) > 8 else '')
    print(
        f'{root}: {len(images.classes)} classes ({names}), {images.sizes["train"]} images to train on, '
        f'{images.sizes["val"]} to validate with{left_out}.',
        file=sys.stderr,
    )


def read_class_folders(root: Path) -> OwnImages:
    """Read ``root/train/CLASS/*`` and ``root/val/CLASS/*``, or ``root/CLASS/*`` with a fifth taken for validation."""
    given = {part: _class_folders(root / part) for part in PARTS} if (root / 'train').is_dir() else None
    if given and not given['val']:
        raise ValueError(
            f'{root} has train/ but no val/ with class folders; add it, or put the class folders into {root}.'
        )
    train = given['train'] if given else _class_folders(root)
    classes = tuple(folder.name for folder in train)
    if len(classes) < 2:
        raise ValueError(
            f'{root} has {len(classes)} class folders; a classifier needs at least two: {root}/train/CLASS/*.jpg and '
            f'{root}/val/CLASS/*.jpg, or {root}/CLASS/*.jpg.'
        )
    if given and (unknown := {folder.name for folder in given['val']} - set(classes)):
        raise ValueError(
            f'{root}/val has the classes {", ".join(sorted(unknown))}, which {root}/train lacks; add them there.'
        )
    found = [(part, path) for part, folders in (given or dict(train=train)).items() for path in _images_in(folders)]
    readable, left_out = _readable([path for _, path in found])
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, path in found:
        if path in readable:
            name = path.relative_to(root / part if given else root)
            part = part if given else _split(name.as_posix())
            lines[part].append(f'{path.relative_to(root).as_posix()} {classes.index(name.parts[0])}')
    lacking = set(range(len(classes))) - {int(line.rpartition(' ')[2]) for line in lines['train']}
    if lacking:
        names = ', '.join(classes[i] for i in sorted(lacking))
        raise ValueError(f'{root} has no readable image to train on of {names}; add images, or remove the folder.')
    return OwnImages(classes, lines, {part: len(lines[part]) for part in PARTS}, left_out)


def read_coco(root: Path) -> OwnImages:
    """Read COCO-style JSON files below ``root``: one with ``train`` and one with ``val`` in its name, or one alone."""
    files = [path for path in sorted(root.rglob('*.json')) if path.name[0] != '.' and _is_coco(path)]
    of = {part: [path for path in files if part in path.stem.lower()] for part in PARTS}
    pairs = [(part, of[part][0]) for part in PARTS] if all(len(of[part]) == 1 for part in PARTS) else []
    if not pairs and len(files) != 1:
        raise ValueError(
            f'{root} has {len(files)} JSON files with images, annotations and categories; name one with "train" and '
            'one with "val" in it, or leave one, which is split.'
        )
    data = [(part, json.loads(path.read_text(encoding='utf-8-sig'))) for part, path in pairs or [('', files[0])]]
    categories = sorted({(category['id'], category['name']) for _, part in data for category in part['categories']})
    unknown = {box['category_id'] for _, part in data for box in part['annotations']} - {
        number for number, _ in categories
    }
    if unknown:
        raise ValueError(
            f'{root} has boxes of the categories {sorted(unknown)}, which no file names; add them to "categories".'
        )
    classes = tuple(name for _, name in categories)
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(
            f'{files[0]} names the categories {", ".join(classes) or "none"}; give each a name of its own.'
        )
    folder = _image_folder(root, [image['file_name'] for _, part in data for image in part['images']])
    images = [(part, image, folder / image['file_name']) for part, read in data for image in read['images']]
    readable, left_out = _readable([path for *_, path in images])
    ids: dict[str, set] = {part: set() for part in PARTS}
    for part, image, path in images:
        if path in readable:
            if fault := _wrong_size(path, image):
                left_out.append(f'{path}: {fault}')
            else:
                ids[part or _split(image['file_name'])].add(image['id'])
    parts = {
        name: _subset([read for part, read in data if part in ('', name)][0], ids[name], categories) for name in PARTS
    }
    if not parts['train']['annotations']:
        raise ValueError(
            f'{root} has no readable image with a box to train on; {(left_out or ["add annotations"])[0]}.'
        )
    return OwnImages(classes, parts, {part: len(ids[part]) for part in PARTS}, left_out, str(folder))


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != '.') if root.is_dir() else []


def _images_in(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS and path.name[0] != '.')


def _split(name: str) -> str:
    """The part of an image whose data set is not split: a fifth, by its name, so that new images move no old ones."""
    return 'val' if crc32(name.encode()) % 5 == 0 else 'train'


def _readable(paths: list[Path]) -> tuple[set[Path], list[str]]:
    """Those images that decode to their end, and a line for each other."""
    with ThreadPoolExecutor(4) as pool:
        faults = list(
            tqdm(pool.map(_fault, paths), 'looking through the images', len(paths), leave=False, disable=None)
        )
    pairs = list(zip(paths, faults))
    return {path for path, fault in pairs if fault is None}, [f'{path}: {fault}' for path, fault in pairs if fault]


def _fault(path: Path) -> Optional[str]:
    try:
        with Image.open(path) as image:
            image.draft('RGB', (32, 32))
            image.load()
    except FileNotFoundError:
        return 'there is no such file'
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f'cannot be read ({error})'


def _wrong_size(path: Path, told: dict[str, Any]) -> Optional[str]:
    """How the image differs from the size to which its boxes refer: images are turned as their EXIF tag says."""
    with Image.open(path) as image:
        size = image.size[::-1] if image.getexif().get(_EXIF_ORIENTATION, 1) > 4 else image.size
    if (told.setdefault('width', size[0]), told.setdefault('height', size[1])) != size:
        return f'is {size[0]}x{size[1]} as displayed, but its boxes are for {told["width"]}x{told["height"]}'


def _is_coco(path: Path) -> bool:
    try:
        read = json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, OSError) as error:  # a part of the data set that must not be missed
        raise ValueError(f'{path} is no JSON file that can be read ({error}); copy it again, or remove it.') from error
    return isinstance(read, dict) and {'images', 'annotations', 'categories'} <= set(read)


def _image_folder(root: Path, names: list[str]) -> Path:
    """The folder below which most of the named files are."""
    candidates = [root, *sorted(path for path in root.rglob('*') if path.is_dir())]
    sample = names[:: max(len(names) // 50, 1)]
    return max(candidates, key=lambda folder: sum((folder / name).is_file() for name in sample))


def _subset(read: dict[str, Any], ids: set, categories: list[tuple[int, str]]) -> dict[str, Any]:
    """The images of these numbers with their boxes, and the two fields of a box that MMDetection asks for."""
    return dict(
        images=[image for image in read['images'] if image['id'] in ids],
        annotations=[
            dict(iscrowd=0, area=box['bbox'][2] * box['bbox'][3]) | box
            for box in read['annotations']
            if box['image_id'] in ids
        ],
        categories=[dict(id=number, name=name) for number, name in categories],
    )

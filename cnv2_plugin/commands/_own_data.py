"""Configs that need the folder of the user's data and nothing else: classes, lists and batch sizes come from there."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.io import staged
from ._own_images import OwnImages, read_class_folders, read_coco

if TYPE_CHECKING:
    from mmengine.config import Config

READERS = dict(class_folders=read_class_folders, coco=read_coco)


def fit_to_own_data(cfg: 'Config') -> None:
    """Complete a config that says ``own_data = 'class_folders'`` or ``'coco'`` from its ``data_root``, in place.

    The lists of images are written to ``own_data/`` in its work folder. The config is complete then, and says
    ``own_data = None``: the copy in the work folder needs the data for training and testing only.
    """
    kind = cfg.get('own_data')
    if not kind:
        return
    if kind not in READERS:
        raise ValueError(f'own_data is {kind!r}; it takes {" or ".join(map(repr, READERS))}.')
    root = Path(cfg.get('data_root') or '')
    if not cfg.get('data_root') or not root.is_dir():
        raise ValueError(
            f'data_root is {cfg.get("data_root")!r}, which is not a folder; give that of your data: '
            '--cfg-options data_root=FOLDER, or name the complete config that a training left in its work folder.'
        )
    images = READERS[kind](root)
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

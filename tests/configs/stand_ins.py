"""Puts a tiny data set in place of the one that a config names, and keeps the config's pipelines."""

import json
from pathlib import Path

import cv2
import numpy
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

CONFIGS = Path(__file__).parents[2] / 'configs'
IMAGENET_SIZES = {224: 64, 256: 72}
COUNT = 4
TRAINING_COUNT = 40
"""Enough for a schedule that gives its parts in thousands of iterations."""


@DATASETS.register_module()
class StandInImages(BaseDataset):
    """Seeded noise images of a given shape."""

    def __init__(self, shape, num_classes: int, count: int, pipeline) -> None:
        self.shape = tuple(shape)
        self.count = count
        self.num_classes = num_classes
        super().__init__(ann_file='', pipeline=pipeline)

    def load_data_list(self) -> list[dict]:
        """Images and labels."""
        rng = numpy.random.default_rng(0)
        return [
            dict(
                img=rng.integers(0, 256, self.shape, dtype=numpy.uint8),
                gt_label=numpy.array(i % self.num_classes),
                sample_idx=i,
            )
            for i in range(self.count)
        ]


def config_paths() -> list[Path]:
    """Every config of a run."""
    return sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)


def load(path: Path, work_dir: Path) -> Config:
    """Read a config, with stand-in data."""
    return with_stand_ins(Config.fromfile(path), work_dir)


def with_stand_ins(cfg: Config, work_dir: Path) -> Config:
    """A config with stand-in data, and without what needs files or processes."""
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'ERROR'
    cfg.visualizer = None
    stand_in = _scenes if cfg.default_scope == 'mmdet' else _images
    stand_in(cfg, work_dir)
    for name in ('train_dataloader', 'val_dataloader'):
        cfg[name].update(batch_size=2, num_workers=0, persistent_workers=False)
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    return cfg


def _images(cfg: Config, work_dir: Path) -> None:
    shapes = dict(
        ImageNet=(64, 80, 3),
        CIFAR10=(32, 32, 3),
        CIFAR100=(32, 32, 3),
        FashionMNIST=(28, 28),
        CustomDataset=(64, 80, 3),
    )
    for name in ('train_dataloader', 'val_dataloader'):
        dataset = cfg[name].dataset
        pipeline = [step for step in dataset.pipeline if step['type'] != 'LoadImageFromFile']
        for step in pipeline:
            for option in ('scale', 'crop_size'):
                step.update({option: IMAGENET_SIZES[step[option]]} if step.get(option) in IMAGENET_SIZES else {})
        cfg[name].dataset = dict(
            type='StandInImages',
            shape=shapes[dataset.type],
            num_classes=cfg.data_preprocessor.num_classes,
            count=COUNT if name == 'val_dataloader' else TRAINING_COUNT,
            pipeline=pipeline,
        )


def _scenes(cfg: Config, work_dir: Path) -> None:
    classes = cfg.train_dataloader.dataset.get('metainfo', CocoDataset.METAINFO)['classes']
    _write_scenes(work_dir, classes)
    for name in ('train_dataloader', 'val_dataloader'):
        dataset = cfg[name].dataset
        dataset.update(data_root=str(work_dir), ann_file='scenes.json', data_prefix=dict(img='scenes'))
        for step in dataset.pipeline:
            if step['type'] == 'Resize':
                step['scale'] = (96, 96)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.bbox_head.fc_out_channels = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 50
        cfg.model.train_cfg.rcnn.sampler.num = 32
    cfg.val_evaluator.ann_file = str(work_dir / 'scenes.json')


def _write_scenes(folder: Path, classes) -> None:
    (folder / 'scenes').mkdir()
    rng = numpy.random.default_rng(0)
    images, annotations = [], []
    for i in range(COUNT):
        cv2.imwrite(str(folder / 'scenes' / f'{i}.png'), rng.integers(0, 256, (64, 64, 3), dtype=numpy.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        annotations.append(dict(id=i + 1, image_id=i, category_id=i % 2, bbox=[8, 8 + i, 40, 32], area=1280, iscrowd=0))
    categories = [dict(id=i, name=name) for i, name in enumerate(classes)]
    (folder / 'scenes.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))

"""A tiny data set in memory, and configs of runners that train on it."""

from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

import cnv2_plugin  # noqa: F401  (registers the backbones, necks and hooks)

ARCH = dict(
    layers=(1, 2), growth=(8, 12), groups_1x1=4, groups_3x3=2, groups_sfr=2, condense_factor=4, sparse_factor=3,
    se_from=2, hswish_from=2, head_width=20,
)  # fmt: skip
CLASSES = 3


@DATASETS.register_module()
class RandomImages(torch.utils.data.Dataset):
    """Seeded noise images whose brightness tells the class."""

    metainfo = dict(classes=('dark', 'grey', 'bright'))

    def __init__(self, length: int = 16, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(length) % CLASSES
        noise = torch.randint(0, 128, (length, 3, size, size), generator=generator)
        self.images = (noise + 60 * self.labels[:, None, None, None]).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], data_samples=DataSample().set_gt_label(int(self.labels[index])))


@HOOKS.register_module()
class Recorder(Hook):
    """Keeps every loss, and the stage and masks after every iteration."""

    priority = 'VERY_LOW'
    records: dict

    def before_train(self, runner) -> None:
        self.records = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        masks = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(('.mask', '.stage'))}
        self.records[runner.iter] = dict(loss=outputs['loss'].item(), outputs=dict(outputs), masks=masks)


def classifier(arch=ARCH, **backbone) -> dict:
    """Config of an ImageClassifier with CondenseNetV2, its neck and its head."""
    growth, layers = arch['growth'], arch['layers']
    channels = 2 * growth[0] + sum(n * k for n, k in zip(layers, growth))
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[128.0] * 3, std=[60.0] * 3, num_classes=CLASSES),
        backbone=dict(type='CondenseNetV2', arch=dict(arch), **backbone),
        neck=dict(type='SEGlobalPooling', channels=channels),
        head=dict(
            type='StackedLinearClsHead',
            num_classes=CLASSES,
            in_channels=channels,
            mid_channels=[arch['head_width']],
            act_cfg=dict(type='HSwish'),
        ),
    )


def dataloader(batch_size: int = 4, shuffle: bool = True, length: int = 16) -> dict:
    """Config of a loader of the stand-in data."""
    return dict(
        batch_size=batch_size,
        num_workers=0,
        dataset=dict(type='RandomImages', length=length),
        sampler=dict(type='DefaultSampler', shuffle=shuffle),
        collate_fn=dict(type='default_collate'),
    )


def runner_config(work_dir, epochs: int = 4, **overrides) -> Config:
    """Config of a whole run: training, validation and test."""
    cfg = dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['cnv2_plugin', 'tests.openmmlab.stand_ins']),
        work_dir=str(work_dir),
        model=classifier(),
        train_dataloader=dataloader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=100),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True)),
        param_scheduler=dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs),
        val_dataloader=dataloader(shuffle=False),
        val_cfg=dict(),
        val_evaluator=dict(type='Accuracy'),
        test_dataloader=dataloader(shuffle=False),
        test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='StagedSparsificationHook'), dict(type='Recorder')],
        randomness=dict(seed=0, deterministic=False),
        log_level='WARNING',
        experiment_name=f'run_{abs(hash(str(work_dir)))}',
    )
    cfg.update(deepcopy(overrides))
    return Config(cfg)


def hook_of(runner: Runner, name: str):
    """The runner's hook of that class."""
    return next(hook for hook in runner.hooks if type(hook).__name__ == name)


def without_sparsification(cfg: Config, **hook) -> Config:
    """Replace the sparsification hook of a config, or drop it where no options are given."""
    kept = [h for h in cfg.custom_hooks if h['type'] != 'StagedSparsificationHook']
    cfg.custom_hooks = ([dict(type='StagedSparsificationHook', **hook)] if hook else []) + kept
    return cfg


def train(cfg: Config) -> Runner:
    """Build the runner and train."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner

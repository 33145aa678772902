# Scenes composed of Fashion-MNIST images, in COCO format. Make them with
#     python tools/prepare_fashion_mnist.py data/fashion_mnist
#     python tools/make_scenes.py data/fashion_scenes
# _scope_: types without it are looked up in mmpretrain where this is the base of a config outside the package.
dataset_type = 'CocoDataset'
data_root = 'data/fashion_scenes/'
metainfo = dict(
    classes=('T-shirt', 'Trouser', 'Sneaker', 'Bag', 'Ankle boot'),
    palette=[(230, 80, 80), (90, 170, 250), (90, 210, 120), (240, 190, 60), (200, 120, 240)],
)
image_scale = (160, 160)

train_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile'),
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(_scope_='mmdet', type='Resize', scale=image_scale, keep_ratio=True),
    dict(_scope_='mmdet', type='RandomFlip', prob=0.5),
    dict(_scope_='mmdet', type='PackDetInputs'),
]
test_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile'),
    dict(_scope_='mmdet', type='Resize', scale=image_scale, keep_ratio=True),
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(
        _scope_='mmdet',
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        _scope_='mmdet',
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=10,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        _scope_='mmdet',
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _scope_='mmdet', type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox', format_only=False
)
test_evaluator = val_evaluator

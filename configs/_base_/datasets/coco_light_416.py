# COCO at 416x416 for light detectors.
_base_ = 'mmdet::_base_/datasets/coco_detection.py'

image_scale = (416, 416)
padding = dict(_scope_='mmdet', type='Pad', size=image_scale, pad_val=dict(img=(114, 114, 114)))

train_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile', backend_args=None),
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(
        _scope_='mmdet',
        type='CachedMosaic',
        img_scale=image_scale,
        pad_val=114.0,
        max_cached_images=20,
        random_pop=False,
    ),
    dict(_scope_='mmdet', type='RandomResize', scale=(832, 832), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(_scope_='mmdet', type='RandomCrop', crop_size=image_scale),
    dict(_scope_='mmdet', type='YOLOXHSVRandomAug'),
    dict(_scope_='mmdet', type='RandomFlip', prob=0.5),
    padding,
    dict(_scope_='mmdet', type='PackDetInputs'),
]
# Without mosaic, for the last epochs.
train_pipeline_stage2 = [
    dict(_scope_='mmdet', type='LoadImageFromFile', backend_args=None),
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(_scope_='mmdet', type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(_scope_='mmdet', type='RandomCrop', crop_size=image_scale),
    dict(_scope_='mmdet', type='YOLOXHSVRandomAug'),
    dict(_scope_='mmdet', type='RandomFlip', prob=0.5),
    padding,
    dict(_scope_='mmdet', type='PackDetInputs'),
]
test_pipeline = [
    dict(_scope_='mmdet', type='LoadImageFromFile', backend_args=None),
    dict(_scope_='mmdet', type='Resize', scale=image_scale, keep_ratio=True),
    padding,
    dict(_scope_='mmdet', type='LoadAnnotations', with_bbox=True),
    dict(
        _scope_='mmdet',
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(batch_size=32, num_workers=8, batch_sampler=None, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, num_workers=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

custom_hooks = [
    dict(type='mmengine.EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(_scope_='mmdet', type='PipelineSwitchHook', switch_epoch=280, switch_pipeline=train_pipeline_stage2),
    dict(type='StagedSparsificationHook'),
]

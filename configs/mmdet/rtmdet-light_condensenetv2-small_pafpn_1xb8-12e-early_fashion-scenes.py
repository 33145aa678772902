# RTMDet-light on generated scenes; our recipe without its teacher, see docs/recipes.md.
_base_ = [
    '../_base_/models/rtmdet_light.py',
    '../_base_/datasets/fashion_scenes_bs8.py',
    'mmdet::_base_/default_runtime.py',
]

custom_imports = dict(imports=['cnv2_plugin'])
custom_hooks = [dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=10, log_interval=25)]

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            layers=(1, 1, 3, 4, 4),
            growth=(8, 8, 16, 32, 64),
            groups_1x1=4,
            groups_3x3=4,
            groups_sfr=4,
            condense_factor=4,
            sparse_factor=4,
        )
    ),
    neck=[
        {**_base_.model.neck[0], 'in_channels': [80, 208, 464], 'out_channels': 48},
        {**_base_.model.neck[1], 'in_channels': [48, 48, 48], 'out_channels': 48},
    ],
    bbox_head=dict(num_classes=5, in_channels=48, feat_channels=48),
)

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01), clip_grad=dict(max_norm=10.0)
)
# The last stage ends the first quarter; then the rate goes back to its start.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=12, by_epoch=True, begin=0, end=3, convert_to_iter_based=True),
    dict(
        type='CosineRestartLR',
        periods=[9],
        restart_weights=[1.0],
        eta_min=0,
        by_epoch=True,
        begin=3,
        end=12,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(interval=6, max_keep_ckpts=1),
)
randomness = dict(seed=0)
auto_scale_lr = dict(enable=False, base_batch_size=8)

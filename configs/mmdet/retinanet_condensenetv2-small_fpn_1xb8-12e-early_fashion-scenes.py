# Our recipe without its teacher, see docs/recipes.md; the papers' is the base.
_base_ = './retinanet_condensenetv2-small_fpn_1xb8-12e_fashion-scenes.py'

custom_hooks = [dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=10, log_interval=25)]

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

# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './condensenetv2-b_8xb128-350e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/condensenetv2/condensenetv2-b_8xb128-350e_in1k.py',
        checkpoint='checkpoints/condensenetv2-b_unpruned.pth',
    ),
    dict(type='EMAHook', momentum=2e-4, update_buffers=True),
    dict(type='SwitchToDeployHook', before_test=False),
]

# The last stage ends the first quarter; then the rate goes back to its start.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.25, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=345, by_epoch=True, begin=5, end=88, convert_to_iter_based=True),
    dict(
        type='CosineRestartLR',
        periods=[262],
        restart_weights=[1.0],
        eta_min=0,
        by_epoch=True,
        begin=88,
        end=350,
        convert_to_iter_based=True,
    ),
]

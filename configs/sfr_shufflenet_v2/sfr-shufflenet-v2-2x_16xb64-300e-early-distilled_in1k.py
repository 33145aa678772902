# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './sfr-shufflenet-v2-2x_16xb64-300e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/sfr_shufflenet_v2/sfr-shufflenet-v2-2x_16xb64-300e_in1k.py',
        checkpoint='checkpoints/sfr-shufflenet-v2-2x_unpruned.pth',
    ),
    dict(type='SwitchToDeployHook', before_test=False),
]

# The last stage ends the first quarter; then the rate goes back to its start.
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=5000),
    dict(type='PolyLR', eta_min=0.375, by_epoch=True, begin=4, end=75, convert_to_iter_based=True),
    dict(
        type='CosineRestartLR',
        periods=[225],
        restart_weights=[1.0],
        eta_min=0,
        by_epoch=True,
        begin=75,
        end=300,
        convert_to_iter_based=True,
    ),
]

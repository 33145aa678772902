# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './condensenet-74-g4_8xb32-120e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, group_lasso=1e-5, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/condensenet/condensenet-74-g4_8xb32-120e_in1k.py',
        checkpoint='checkpoints/condensenet-74-g4_unpruned.pth',
    ),
    dict(type='SwitchToDeployHook', before_test=False),
]

# The last stage ends the first quarter; then the rate goes back to its start.
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=120, by_epoch=True, begin=0, end=30, convert_to_iter_based=True),
    dict(
        type='CosineRestartLR',
        periods=[90],
        restart_weights=[1.0],
        eta_min=0,
        by_epoch=True,
        begin=30,
        end=120,
        convert_to_iter_based=True,
    ),
]

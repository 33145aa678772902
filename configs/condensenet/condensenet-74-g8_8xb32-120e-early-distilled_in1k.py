# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './condensenet-74-g8_8xb32-120e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, group_lasso=1e-5, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/condensenet/condensenet-74-g8_8xb32-120e_in1k.py',
        checkpoint='checkpoints/condensenet-74-g8_unpruned.pth'),
    dict(type='SwitchToDeployHook', before_test=False),
]

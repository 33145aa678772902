# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './sfr-shufflenet-v2-1x_16xb64-300e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/sfr_shufflenet_v2/sfr-shufflenet-v2-1x_16xb64-300e_in1k.py',
        checkpoint='checkpoints/sfr-shufflenet-v2-1x_unpruned.pth'),
    dict(type='SwitchToDeployHook', before_test=False),
]

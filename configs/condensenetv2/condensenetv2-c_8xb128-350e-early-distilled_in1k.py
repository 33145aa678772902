# Our recipe, see docs/recipes.md; the papers' is the base.
_base_ = './condensenetv2-c_8xb128-350e_in1k.py'

custom_hooks = [
    dict(type='StagedSparsificationHook', sparse_fraction=0.25, recalibrate=50),
    dict(
        type='DistillationHook',
        teacher='configs/condensenetv2/condensenetv2-c_8xb128-350e_in1k.py',
        checkpoint='checkpoints/condensenetv2-c_unpruned.pth'),
    dict(type='EMAHook', momentum=2e-4, update_buffers=True),
    dict(type='SwitchToDeployHook', before_test=False),
]

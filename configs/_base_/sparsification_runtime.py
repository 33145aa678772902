_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['cnv2_plugin'])
custom_hooks = [
    dict(type='StagedSparsificationHook'),
    dict(type='SwitchToDeployHook', before_test=False),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))

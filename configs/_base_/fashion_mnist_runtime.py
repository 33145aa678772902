_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['cnv2_plugin'])
custom_hooks = [dict(type='StagedSparsificationHook', log_interval=20)]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=5, max_keep_ckpts=1),
)
randomness = dict(seed=0)

# Layers that come pruned from ImageNet stay as they are; SFRFPN's, or all of an unpruned backbone's, are pruned.
custom_imports = dict(imports=['cnv2_plugin'])
custom_hooks = [
    dict(type='StagedSparsificationHook'),
    dict(type='SwitchToDeployHook', before_test=False),
]

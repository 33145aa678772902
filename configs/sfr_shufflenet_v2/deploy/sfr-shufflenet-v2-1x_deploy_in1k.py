_base_ = '../sfr-shufflenet-v2-1x_16xb64-300e_in1k.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

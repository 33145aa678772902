_base_ = '../condensenet-74-g8_8xb32-120e_in1k.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

_base_ = '../condensenetv2-c_8xb128-350e_in1k.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

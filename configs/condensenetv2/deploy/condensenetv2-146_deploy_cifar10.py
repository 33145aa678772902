_base_ = '../condensenetv2-146_1xb64-300e_cifar10.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

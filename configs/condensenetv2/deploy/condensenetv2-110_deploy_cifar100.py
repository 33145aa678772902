_base_ = '../condensenetv2-110_1xb64-300e_cifar100.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

_base_ = '../condensenet-50_1xb64-300e_cifar10.py'

model = dict(backbone=dict(deploy=True))
custom_hooks = []

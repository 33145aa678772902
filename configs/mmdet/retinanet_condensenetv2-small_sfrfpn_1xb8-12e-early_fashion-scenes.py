_base_ = './retinanet_condensenetv2-small_fpn_1xb8-12e-early_fashion-scenes.py'

model = dict(neck=dict(type='SFRFPN', groups=4, sparse_factor=4))

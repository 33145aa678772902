_base_ = './retinanet_condensenetv2-c_fpn_1x_coco.py'

model = dict(neck=dict(type='SFRFPN', sfr_norm_cfg=dict(type='SyncBN')))

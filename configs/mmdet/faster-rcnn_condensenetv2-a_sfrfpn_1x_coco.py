_base_ = './faster-rcnn_condensenetv2-a_fpn_1x_coco.py'

model = dict(neck=dict(type='SFRFPN', sfr_norm_cfg=dict(type='SyncBN')))

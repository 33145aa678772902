# The coarser levels reactivate the finer ones before the path aggregation.
_base_ = './rtmdet-light_condensenetv2-b_pafpn_8xb32-300e_coco-416.py'

model = dict(
    neck=[
        _base_.model.neck[0],
        dict(type='SFRTopDown', in_channels=[96, 96, 96]),
        _base_.model.neck[1],
    ]
)

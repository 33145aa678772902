# The coarser levels reactivate the finer ones before the path aggregation.
_base_ = './rtmdet-light_condensenetv2-a_pafpn_8xb32-300e_coco-320.py'

model = dict(
    neck=[
        _base_.model.neck[0],
        dict(type='SFRTopDown', in_channels=[64, 64, 64]),
        _base_.model.neck[1],
    ]
)

# The 1x1 convolutions of neck and head learn groups too.
_base_ = './rtmdet-light_condensenetv2-a_pafpn_8xb32-300e_coco-320.py'

custom_hooks = [
    dict(type='LearnedGroupSurgeryHook', groups=4, factor=4, include=['neck', 'bbox_head'], input_size=(3, 320, 320)),
    *_base_.custom_hooks,
]

# The 1x1 convolutions of neck and head learn groups too.
_base_ = './rtmdet-light_condensenetv2-small_pafpn_1xb8-12e-early_fashion-scenes.py'

custom_hooks = [
    dict(type='LearnedGroupSurgeryHook', groups=4, factor=4, include=['neck', 'bbox_head'], input_size=(3, 160, 160)),
    *_base_.custom_hooks,
]

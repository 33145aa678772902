_base_ = [
    '../_base_/models/rtmdet_light.py',
    '../_base_/datasets/coco_light_320.py',
    '../_base_/schedules/coco_light_300e.py',
]

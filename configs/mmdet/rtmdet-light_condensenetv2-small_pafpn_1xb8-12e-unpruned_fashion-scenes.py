# Never pruned: what pruning is compared with.
_base_ = './rtmdet-light_condensenetv2-small_pafpn_1xb8-12e-early_fashion-scenes.py'

custom_hooks = []

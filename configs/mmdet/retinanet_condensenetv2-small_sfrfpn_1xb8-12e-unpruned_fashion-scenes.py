# Never pruned: what pruning is compared with.
_base_ = './retinanet_condensenetv2-small_sfrfpn_1xb8-12e_fashion-scenes.py'

custom_hooks = []

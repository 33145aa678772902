"""OpenMMLab backbones, necks and hooks, registered in mmengine's root registries."""

"""Networks of the toolkits that surgery is tried on."""

import timm
import torchvision
from torch import Tensor, nn


class FlatOutputs(nn.Module):
    """A detector's raw outputs as one flat tuple, which exporters and ``verify`` take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(level for outputs in self.model(x) for level in outputs)


def retinanet() -> nn.Module:
    from mmdet.registry import MODELS
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope

    cfg = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        return FlatOutputs(MODELS.build(cfg))


NETWORKS = {
    'mobilenetv2_100': lambda: timm.create_model('mobilenetv2_100'),
    'shufflenet_v2_x1_0': torchvision.models.shufflenet_v2_x1_0,
    'resnet50': lambda: timm.create_model('resnet50'),
    'densenet121': lambda: timm.create_model('densenet121'),
    'convnext_atto': lambda: timm.create_model('convnext_atto', ls_init_value=0.5),
    'retinanet_r50': retinanet,
}

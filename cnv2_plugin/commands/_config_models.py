"""What ``cnv2 deploy CONFIG CHECKPOINT`` compares, exports and says of models of OpenMMLab."""

from contextlib import redirect_stdout
from io import StringIO

from torch import Tensor, nn


class Logits(nn.Module):
    """A classifier or segmenter from normalised images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, classes)``, or maps of a segmenter."""
        return self.model(x, mode='tensor')


class Features(nn.Module):
    """Backbone and neck of a detector or segmenter, from normalised images to feature maps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(N, C, H, W)`` to one map a level."""
        return tuple(self.neck(self.backbone(x)))


class HeadOutputs(nn.Module):
    """A single-stage detector from normalised images to the raw outputs of its head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map ``(N, C, H, W)`` to the class scores, boxes and so on of every level."""
        return tuple(output for kind in self.model(x, mode='tensor') for output in kind)


def compared_views(model: nn.Module) -> tuple[str, dict[str, type[nn.Module]]]:
    """What kind of model it is, and what is compared before and after condensing, of which the first is exported.

    A two-stage detector's second stage has no raw output without proposals, so its features are compared.
    """
    bases = {base.__name__ for base in type(model).__mro__}
    for base, kind, views in (
        ('ImageClassifier', 'classifier', (Logits,)),
        ('SingleStageDetector', 'detector', (Features, HeadOutputs)),
        ('BaseSegmentor', 'segmenter', (Features, Logits)),
        ('BaseDetector', 'detector', (Features,)),
    ):
        if base in bases and hasattr(model, 'backbone'):
            return kind, {f'{view.__name__} of the condensed model': view for view in views}
    raise ValueError(
        f'{type(model).__name__} is neither an ImageClassifier of mmpretrain nor a detector of mmdet or segmentor '
        f'of mmseg with a backbone; condense other models by cnv2_plugin.deploy.condense.'
    )


def input_size_of(cfg) -> tuple[int, int, int]:
    """``(C, H, W)`` that the config's test pipeline ends with; raises a ValueError where it does not say."""
    channels = cfg.model.backbone.get('in_channels', 3)
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    for step in reversed(loader.get('dataset', {}).get('pipeline', [])):
        size = step.get('crop_size') or step.get('scale')
        if isinstance(size, int):
            return channels, size, size
        if size:
            width, height = (-(-side // 32) * 32 for side in size)
            return channels, height, width
    raise ValueError('the test pipeline does not say how large the images are; give --input C H W.')


def plain_meta(checkpoint: dict) -> dict:
    """The names of the classes, for visualizers and inferencers."""
    meta = checkpoint.get('meta')
    classes = meta.get('dataset_meta') if isinstance(meta, dict) else None
    return dict(dataset_meta=classes) if classes else {}


def onnx_metadata(cfg, meta: dict) -> dict:
    """What a user of the ONNX file must know about its input and classes."""
    from ..toolkits.openmmlab.preprocessing import preprocessing

    found = preprocessing(cfg)
    classes = meta.get('dataset_meta', {}).get('classes')
    return {**found, 'classes': list(classes)} if classes else found


def test_images(cfg, model: nn.Module, count: int) -> list[Tensor]:
    """A batch of images of the config's test set, as its model takes them; none where the files are not here."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    try:
        scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')
        with scope, redirect_stdout(StringIO()):  # pycocotools prints
            dataset = DATASETS.build(cfg.test_dataloader.dataset)
            items = [dataset[i] for i in range(min(count, len(dataset)))]
    except (OSError, AttributeError):
        return []
    return [model.data_preprocessor(pseudo_collate(items))['inputs']]

"""The ONNX file of a whole model in the place of a config's model, for its own test set and metric."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Optional

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ...deploy.runtimes.onnxruntime import metadata_of
from ...deploy.timing import onnx_session
from ...whole.detectors import paste


class OnnxModel(BaseModel):
    """Predicts by a file that ``cnv2 deploy`` wrote.

    Args:
        file: the ONNX file.
        data_preprocessor: that of the config.
        threads: of ONNX Runtime.

    Raises:
        ValueError: the file holds no whole model of that kind.
    """

    kind: str
    fitted: Callable[[Tensor], Tensor]
    answers: Callable[[list, list[Tensor]], list]

    def __init__(self, file: str, data_preprocessor: Optional[dict] = None, threads: int = 0) -> None:
        super().__init__(data_preprocessor)
        try:
            self.session = onnx_session(file, threads or torch.get_num_threads())
        except Exception as error:  # ONNX Runtime raises what derives from nothing else
            raise ValueError(f'{file} is no ONNX file that opens here; deploy it again. ({error})') from error
        self.metadata = metadata_of(self.session)
        if self.metadata.get('kind') != self.kind:
            raise ValueError(
                f'{file} holds no whole {self.kind}; give a file that "cnv2 deploy CONFIG CHECKPOINT" wrote.'
            )
        self.limits = self.session.get_inputs()[0].shape
        self.takes_sizes = any(item.name == 'sizes' for item in self.session.get_overridable_initializers())

    def forward(self, inputs: Tensor, data_samples: Optional[list] = None, mode: str = 'tensor') -> Any:
        """Return the outputs of the file, or with ``mode='predict'`` the samples with what was found in them.

        Raises:
            ValueError: the file takes images of another size.
        """
        inputs = self.fitted(inputs)
        for given, limit in zip(inputs.shape[1:], self.limits[1:]):
            if isinstance(limit, int) and given != limit:
                raise ValueError(
                    f'the test set has images (C, H, W) of {tuple(inputs.shape[1:])}, the file takes '
                    f'{tuple(self.limits[1:])}; deploy it with that --input.'
                )
        parts = inputs.split(self.limits[0]) if isinstance(self.limits[0], int) else [inputs]
        sizes = [tuple(sample.metainfo['img_shape'][:2]) for sample in data_samples or ()]
        results = [self._run(part, sizes[i * len(parts[0]) :]) for i, part in enumerate(parts)]
        outputs = [torch.cat(output) for output in zip(*results)]
        return outputs if mode != 'predict' or data_samples is None else self.answers(data_samples, outputs)

    def _run(self, images: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Outputs for some images; a file of a fixed batch is fed the last one again to fill up."""
        missing = self.limits[0] - len(images) if isinstance(self.limits[0], int) else 0
        fed = torch.cat([images, *[images[-1:]] * missing])
        inputs = dict(input=fed.numpy())
        if sizes and self.takes_sizes:
            inputs['sizes'] = torch.tensor(sizes[: len(images)] + [sizes[-1]] * missing).numpy()
        outputs = self.session.run(None, inputs)
        return [torch.from_numpy(output)[: len(images)] for output in outputs]


@MODELS.register_module()
class OnnxDetector(OnnxModel):
    """A detector; images are padded to the file's stride."""

    kind = 'detector'

    def fitted(self, inputs: Tensor) -> Tensor:
        """Pad to multiples of the stride."""
        stride = self.metadata['stride']
        return F.pad(inputs, (0, -inputs.size(3) % stride, 0, -inputs.size(2) % stride))

    def answers(self, samples: list, outputs: list[Tensor]) -> list:
        """Put instances into the samples."""
        for sample, *found in zip(samples, *outputs):
            sample.pred_instances = self._instances(sample.metainfo, *found)
        return samples

    def _instances(
        self, meta: dict, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Optional[Tensor] = None
    ) -> InstanceData:
        """What was found, in pixels of the image as it was before the pipeline."""
        found = labels >= 0
        boxes = boxes[found]
        if self.metadata['clips']:
            height, width = meta['img_shape'][:2]
            boxes = torch.minimum(boxes, boxes.new_tensor([width, height] * 2))
        if 'border' in meta:
            boxes = boxes - boxes.new_tensor([meta['border'][i] for i in (2, 0, 2, 0)])
        boxes = boxes / boxes.new_tensor(meta.get('scale_factor', (1.0, 1.0))).repeat(2)
        instances = InstanceData(bboxes=boxes, scores=scores[found], labels=labels[found])
        if masks is not None:
            threshold = self.metadata['mask_thr_binary']
            instances.masks = paste(masks[found], boxes, tuple(meta['ori_shape'][:2]), threshold)
        return instances


@MODELS.register_module()
class OnnxSegmenter(OnnxModel):
    """A segmenter; where images are of another size than they came in, the file has to hold logits."""

    kind = 'segmenter'

    def fitted(self, inputs: Tensor) -> Tensor:
        """Check that the file takes images of that size: padded ones would get other masks."""
        stride, size = self.metadata['stride'], tuple(inputs.shape[2:])
        if any(side % stride for side in size):
            raise ValueError(
                f'the test set has images (H, W) of {size}, the file takes multiples of {stride}; set '
                f'model.data_preprocessor.test_cfg=dict(size_divisor={stride}) in the config, for the checkpoint too.'
            )
        return inputs

    def answers(self, samples: list, outputs: list[Tensor]) -> list:
        """Put masks of the size of the original images into the samples."""
        from mmseg.models import BaseSegmentor

        mask, *logits = outputs
        if logits:
            head = SimpleNamespace(threshold=self.metadata.get('threshold'))
            settings: Any = SimpleNamespace(align_corners=self.metadata['align_corners'], decode_head=head)
            return BaseSegmentor.postprocess_result(settings, logits[0], samples)
        for sample, found in zip(samples, mask):
            if tuple(sample.metainfo['ori_shape']) != tuple(found.shape) or sample.metainfo.get('flip'):
                raise ValueError(
                    f'the test set has images of {tuple(sample.metainfo["ori_shape"])}, resized or padded to '
                    f'{tuple(found.shape)}, whose masks are made of logits; deploy the file with --logits.'
                )
            sample.pred_sem_seg = PixelData(data=found[None])
        return samples

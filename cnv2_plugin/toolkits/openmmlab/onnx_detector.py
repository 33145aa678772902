"""The ONNX file of a whole detector in the place of a config's model, for its own test set and metric."""

from typing import Any, Optional

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional as F

from ...deploy.detectors import paste
from ...deploy.runtimes.onnxruntime import metadata_of
from ...deploy.timing import onnx_session


@MODELS.register_module()
class OnnxDetector(BaseModel):
    """Predicts by a file that ``cnv2 deploy`` wrote for a detector.

    Args:
        file: the ONNX file.
        data_preprocessor: that of the config.
        threads: of ONNX Runtime.

    Raises:
        ValueError: the file holds no whole detector.
    """

    def __init__(self, file: str, data_preprocessor: Optional[dict] = None, threads: int = 0) -> None:
        super().__init__(data_preprocessor)
        try:
            self.session = onnx_session(file, threads or torch.get_num_threads())
        except Exception as error:  # ONNX Runtime raises what derives from nothing else
            raise ValueError(f'{file} is no ONNX file that opens here; deploy it again. ({error})') from error
        self.metadata = metadata_of(self.session)
        if self.metadata.get('kind') != 'detector':
            raise ValueError(f'{file} holds no whole detector; give a file that "cnv2 deploy CONFIG CHECKPOINT" wrote.')
        self.limits = self.session.get_inputs()[0].shape

    def forward(self, inputs: Tensor, data_samples: Optional[list] = None, mode: str = 'tensor') -> Any:
        """Return the outputs of the file, or with ``mode='predict'`` the samples with what was found in them.

        Raises:
            ValueError: the file takes images of another size.
        """
        stride = self.metadata['stride']
        inputs = F.pad(inputs, (0, -inputs.size(3) % stride, 0, -inputs.size(2) % stride))
        for given, limit in zip(inputs.shape[1:], self.limits[1:]):
            if isinstance(limit, int) and given != limit:
                raise ValueError(
                    f'the test set has images (C, H, W) of {tuple(inputs.shape[1:])}, the file takes '
                    f'{tuple(self.limits[1:])}; deploy it with that --input.'
                )
        parts = inputs.split(self.limits[0]) if isinstance(self.limits[0], int) else [inputs]
        results = [self._run(part) for part in parts]
        outputs = [torch.cat(output) for output in zip(*results)]
        if mode != 'predict' or data_samples is None:
            return outputs
        for sample, *found in zip(data_samples, *outputs):
            sample.pred_instances = self._instances(sample.metainfo, *found)
        return data_samples

    def _run(self, images: Tensor) -> list[Tensor]:
        """Outputs for some images; a file of a fixed batch is fed the last one again to fill up."""
        missing = self.limits[0] - len(images) if isinstance(self.limits[0], int) else 0
        fed = torch.cat([images, *[images[-1:]] * missing])
        outputs = self.session.run(None, {'input': fed.numpy()})
        return [torch.from_numpy(output)[: len(images)] for output in outputs]

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

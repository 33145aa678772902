"""Files of whole detectors answer as MMDetection's predict does, in pixels of the original image."""

import numpy
import pytest
import torch

pytest.importorskip('onnxruntime')
pytest.importorskip('mmdet')
pytest.importorskip('cnv2_plugin.whole.detectors')

from mmdet.structures import DetDataSample

from cnv2_plugin.serving import Model
from cnv2_plugin.serving.images import open_image, prepare
from cnv2_plugin.whole.detectors import export_detector
from tests.openmmlab.detectors import detector
from tests.serving.test_serving import picture

NATIVE = pytest.param(True, marks=pytest.mark.needs('kernels'), id='native')


@pytest.mark.parametrize('name', ['retinanet', pytest.param('mask_rcnn', marks=pytest.mark.slow)])
@pytest.mark.parametrize('native', [pytest.param(False, id='standard'), NATIVE])
@pytest.mark.parametrize(('original', 'inside'), [((128, 192), (64, 96)), ((110, 192), (55, 96))])  # one is padded
def test_boxes_and_masks_are_those_of_predict(name, native, original, inside, tmp_path):
    model = detector(name)
    told = dict(resize=['inside', 64, 96], interpolation='bilinear', backend='opencv', classes=['ant', 'bee', 'cat'])
    export_detector(model, tmp_path / 'd.onnx', (3, 64, 96), native=native, metadata=told)
    served = Model(tmp_path / 'd.onnx', threads=1)
    image = picture(*original)
    answer = served(image)
    prepared = prepare(open_image(image), served.about)
    assert prepared.array.shape == (3, 64, 96) and prepared.scale == (0.5, 0.5)
    shape = dict(img_shape=inside, batch_input_shape=(64, 96), ori_shape=original, scale_factor=(0.5, 0.5))
    with torch.no_grad():
        (result,) = model.predict(torch.from_numpy(prepared.array)[None], [DetDataSample(metainfo=shape)], rescale=True)
    expected = result.pred_instances
    assert len(answer.names) == len(expected) > 5
    assert answer.scores == pytest.approx(expected.scores.numpy(), abs=1e-5)
    assert numpy.array_equal(answer.labels, expected.labels.numpy())
    assert answer.boxes == pytest.approx(expected.bboxes.numpy(), abs=0.02)
    if 'mask' in name:
        assert numpy.mean(answer.masks != expected.masks.numpy()) < 0.002
    else:
        assert answer.masks is None

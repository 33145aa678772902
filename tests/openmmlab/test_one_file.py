"""A whole detector in one ONNX file finds what the detector's own predict finds."""

import onnx
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

from cnv2_plugin.deploy import export_onnx
from cnv2_plugin.deploy.runtimes import onnxruntime
from cnv2_plugin.whole.detectors import UnsupportedDetectorError, compare, export_detector

from .detectors import DETECTORS, detector

SIZE = (3, 64, 96)
NATIVE = pytest.param(True, marks=pytest.mark.needs('kernels'), id='native')
FAST = ('retinanet', 'faster_rcnn')
UNCLIPPED = ('tood', 'tood_anchors', 'yolox', 'yolov3', 'centernet')


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*size, generator=generator) for size in ((2, 3, 64, 96), (1, 3, 128, 64), (3, 3, 96, 160))]


@pytest.mark.parametrize(
    'name', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DETECTORS]
)
@pytest.mark.parametrize('native', [pytest.param(False, id='standard'), NATIVE])
def test_a_file_finds_what_predict_finds(tmp_path, name, native, capfd):
    model = detector(name)
    report = export_detector(model, tmp_path / 'd.onnx', SIZE, native=native)
    assert 'shape inference' not in capfd.readouterr().err
    assert report.path == tmp_path / 'd.onnx' and report.verification.boxes
    session = onnxruntime.onnx_session(tmp_path / 'd.onnx')
    assert [item.name for item in session.get_inputs()] == ['input']
    padded = [item.name for item in session.get_overridable_initializers()] == ['sizes']
    found = compare(model, onnxruntime.load(tmp_path / 'd.onnx'), batches(), padded=padded)
    assert (
        padded is (name not in UNCLIPPED)
        and found.images == (12 if padded else 6)
        and found.boxes > 60
        and found.unmatched == 0
    )
    assert found.max_box < 1e-2 and found.max_score < 1e-5 and found.max_mask < 1e-3
    proto = onnx.load(tmp_path / 'd.onnx')
    assert {node.domain for node in proto.graph.node} == ({'', 'cnv2_plugin'} if native else {''})
    names = ['boxes', 'scores', 'labels', *(['masks'] if 'mask' in name else [])]
    assert [item.name for item in proto.graph.output] == names == list(report.outputs)
    for size in ((2, 3, 64, 96), (2, 3, 128, 64)) if 'mask' in name else ():
        boxes, _, _, masks = onnxruntime.load(tmp_path / 'd.onnx')(torch.randn(size))
        assert masks.shape == (*boxes.shape[:2], 28, 28) and boxes.shape == (2, report.count, 4)


def test_rows_without_a_box_are_zero_and_minus_one(tmp_path):
    model = detector('retinanet', dict(score_thr=0.99))
    export_detector(model, tmp_path / 'd.onnx', SIZE)
    boxes, scores, labels = onnxruntime.load(tmp_path / 'd.onnx')(batches()[0])
    assert boxes.shape == (2, 30, 4) and scores.shape == labels.shape == (2, 30) and labels.dtype == torch.int64
    empty = labels < 0
    assert empty.any() and (labels[empty] == -1).all() and not scores[empty].any() and not boxes[empty].any()


@pytest.mark.parametrize(
    ('name', 'test_cfg', 'head', 'named'),
    [
        ('retinanet', dict(nms=dict(type='soft_nms', iou_threshold=0.5)), {}, 'soft_nms'),
        ('retinanet', dict(nms_pre=-1), {}, 'nms_pre=-1'),
        ('retinanet', dict(max_per_img=0), {}, 'max_per_img=0'),
        ('retinanet', {}, dict(bbox_coder=dict(type='TBLRBBoxCoder')), 'TBLRBBoxCoder'),
        ('atss', {}, dict(type='DDODHead'), 'DDODHead'),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, name, test_cfg, head, named):
    model = detector(name, test_cfg, **head)
    with pytest.raises(UnsupportedDetectorError, match=named):
        export_detector(model, tmp_path / 'd.onnx', SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'DeformableDETR is not known'),
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', 'DINO is not known'),
        ('conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', 'ConditionalDETR overrides forward_decoder'),
        ('dab_detr/dab-detr_r50_8xb2-50e_coco.py', 'DABDETR overrides pre_decoder'),
    ],
)
def test_relatives_of_detr_are_refused_by_name(tmp_path, config, name):
    cfg = get_config(f'mmdet::{config}').model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    cfg.neck.in_channels = [channels // 4 for channels in cfg.neck.in_channels]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
    with pytest.raises(UnsupportedDetectorError, match=f'{name}.*--features'):
        export_detector(model, tmp_path / 'd.onnx', SIZE)
    assert not list(tmp_path.iterdir())


def test_an_overridden_decoding_is_refused_by_name(tmp_path):
    model = detector('retinanet')

    class Halved(type(model.bbox_head)):
        def _bbox_post_process(self, results, **options):
            results.scores = results.scores / 2
            return super()._bbox_post_process(results, **options)

    model.bbox_head.__class__ = Halved
    with pytest.raises(UnsupportedDetectorError, match='Halved overrides _bbox_post_process'):
        export_detector(model, tmp_path / 'd.onnx', SIZE)


def test_fixed_batch_and_size_stand_in_the_file(tmp_path):
    model = detector('retinanet')
    report = export_detector(model, tmp_path / 'd.onnx', SIZE, batch=1, fixed_size=True)
    session = onnxruntime.onnx_session(tmp_path / 'd.onnx')
    assert session.get_inputs()[0].shape == [1, *SIZE] and report.verification.images == 2 and report.verification.boxes
    told = onnxruntime.metadata_of(session)
    assert told['kind'] == 'detector' and told['num_classes'] == model.bbox_head.num_classes
    assert told['size'] == [*SIZE] and told['channel_order'] == 'RGB'
    assert told['mean'] == [128.0] * 3 and told['std'] == [60.0] * 3 and told['version']


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    model = detector('retinanet')
    for size, word in (((3, 64, 90), ' 16'), ((64, 64), 'C, H, W')):
        with pytest.raises(ValueError, match=word):
            export_detector(model, tmp_path / 'd.onnx', size)
    with pytest.raises(ValueError, match='batch'):
        export_detector(model, tmp_path / 'd.onnx', SIZE, batch=0)


@pytest.mark.parametrize(
    'name', ['retinanet', *(pytest.param(n, marks=pytest.mark.slow) for n in ('mask_rcnn', 'detr'))]
)
@pytest.mark.parametrize('batch', ['dynamic', 2])
def test_a_file_stands_for_the_model_of_a_config(tmp_path, name, batch):
    model = detector(name)
    export_detector(model, tmp_path / 'd.onnx', SIZE, batch=batch)
    cfg = dict(type='DetDataPreprocessor', mean=[128.0] * 3, std=[60.0] * 3, bgr_to_rgb=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        file = MODELS.build(dict(type='OnnxDetector', file=str(tmp_path / 'd.onnx'), data_preprocessor=cfg))

    def data():
        generator = torch.Generator().manual_seed(3)
        sizes = ((64, 96), (50, 91), (58, 80))  # the smaller ones are padded
        images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
        metas = [dict(img_shape=(h, w), ori_shape=(h // 2, 2 * w), scale_factor=(0.5, 2.0)) for h, w in sizes]
        return dict(inputs=images, data_samples=[DetDataSample(metainfo=meta) for meta in metas])

    for ours, theirs in zip(file.test_step(data()), model.test_step(data())):
        ours, theirs = ours.pred_instances, theirs.pred_instances
        assert len(theirs) > 3 and torch.equal(ours.labels, theirs.labels)
        assert (ours.bboxes - theirs.bboxes).abs().max() < 2e-2 and (ours.scores - theirs.scores).abs().max() < 1e-5
        if name == 'mask_rcnn':
            assert theirs.masks.any() and (ours.masks != theirs.masks).float().mean() < 1e-3


@pytest.mark.slow
def test_a_file_of_another_kind_or_size_is_told(tmp_path):
    model = detector('retinanet')
    export_detector(model, tmp_path / 'd.onnx', SIZE, fixed_size=True)
    file = MODELS.build(dict(type='OnnxDetector', file=str(tmp_path / 'd.onnx')))
    with pytest.raises(ValueError, match='64, 64.*64, 96'):
        file(torch.zeros(1, 3, 64, 64))
    export_onnx(model.backbone, tmp_path / 'b.onnx', SIZE)
    with pytest.raises(ValueError, match='no whole detector'):
        MODELS.build(dict(type='OnnxDetector', file=str(tmp_path / 'b.onnx')))
    (tmp_path / 'c.onnx').write_bytes(b'no model')
    with pytest.raises(ValueError, match='c.onnx is no ONNX file'):
        MODELS.build(dict(type='OnnxDetector', file=str(tmp_path / 'c.onnx')))


@pytest.mark.slow
@pytest.mark.needs('openvino')
@pytest.mark.parametrize('name', DETECTORS)
def test_openvino_finds_what_predict_finds(tmp_path, name):
    from cnv2_plugin.deploy.runtimes import openvino

    model = detector(name)
    report = export_detector(model, tmp_path / 'd.xml', SIZE, batch=2, fixed_size=True)
    assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir()) and report.verification.boxes
    found = compare(model, openvino.load(tmp_path / 'd.xml'), batches()[:1])
    assert found.boxes > 20 and found.unmatched == 0 and found.max_box < 1e-2
    if name in ('retinanet', 'faster_rcnn'):
        export_detector(model, tmp_path / 'd.onnx', SIZE)
        found = compare(model, openvino.load(tmp_path / 'd.onnx'), batches())
        assert found.boxes > 60 and found.unmatched == 0 and found.max_box < 1e-2


@pytest.mark.needs('openvino')
def test_what_openvino_does_not_take_is_told(tmp_path):
    with pytest.raises(ValueError, match='native ones are for .onnx'):
        export_detector(detector('retinanet'), tmp_path / 'd.xml', SIZE, native=True)
    assert not list(tmp_path.iterdir())

"""A whole segmenter in one file gives the masks that the segmenter's own predict gives."""

import json

import cv2
import numpy
import onnx
import pytest
import torch
from mmengine.config import Config
from torch import nn

pytest.importorskip('mmseg.models', reason='there is no mmsegmentation here')

from cnv2_plugin.cli import main
from cnv2_plugin.deploy.runtimes import onnxruntime
from cnv2_plugin.serving import Model
from cnv2_plugin.serving.images import open_image, prepare
from cnv2_plugin.whole.adapters import UnsupportedModelError
from cnv2_plugin.whole.segmenters import compare_masks, export_segmenter

from .segmenters import HEADS, config_of, segmenter

SIZE = (3, 64, 96)
NATIVE = pytest.param(True, marks=pytest.mark.needs('kernels'), id='native')


def batches(factor: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = ((2, 3, 64, 96), (1, 3, 128, 64), (3, 3, 96, 160))
    return [torch.randn(n, c, h * factor, w * factor, generator=generator) for n, c, h, w in sizes]


@pytest.mark.parametrize(
    'name', [name if name == 'psp' else pytest.param(name, marks=pytest.mark.slow) for name in HEADS]
)
@pytest.mark.parametrize('native', [pytest.param(False, id='standard'), NATIVE])
def test_a_file_gives_the_masks_of_predict(tmp_path, name, native):
    model = segmenter(name)
    larger = 7 if name == 'lraspp' else 1  # its pool takes maps of 49 by 49 and more
    size = (3, SIZE[1] * larger, SIZE[2] * larger)
    report = export_segmenter(model, tmp_path / 's.onnx', size, native=native, logits=True)
    assert report.outputs == ('mask', 'logits') and report.verification.pixels
    found = compare_masks(model, onnxruntime.load(tmp_path / 's.onnx'), batches(larger))
    assert found.images == 6 and found.different == 0 and found.max_rel < 1e-5, found
    assert found.level < 1e-4 * found.pixels
    proto = onnx.load(tmp_path / 's.onnx')
    assert {node.domain for node in proto.graph.node} == ({'', 'cnv2_plugin'} if native else {''})
    assert [item.name for item in proto.graph.input] == ['input']
    assert [item.name for item in proto.graph.output] == ['mask', 'logits']


def test_without_logits_only_the_mask_is_in_the_file(tmp_path):
    model = segmenter('fcn')
    report = export_segmenter(model, tmp_path / 's.onnx', SIZE, batch=1, fixed_size=True)
    session = onnxruntime.onnx_session(tmp_path / 's.onnx')
    assert [output.name for output in session.get_outputs()] == ['mask'] == list(report.outputs)
    assert session.get_inputs()[0].shape == [1, *SIZE]
    found = compare_masks(model, onnxruntime.load(tmp_path / 's.onnx'), [torch.randn(1, *SIZE)])
    assert found.pixels == 64 * 96 and not found.different
    told = onnxruntime.metadata_of(session)
    assert told['kind'] == 'segmenter' and told['num_classes'] == model.decode_head.num_classes
    assert told['mean'] == [128.0] * 3 and told['channel_order'] == 'RGB'


@pytest.mark.slow
@pytest.mark.needs('openvino')
@pytest.mark.parametrize('name', ['psp', 'uper', 'segformer'])
def test_openvino_gives_the_masks_of_predict(tmp_path, name):
    from cnv2_plugin.deploy.runtimes import openvino

    model = segmenter(name)
    export_segmenter(model, tmp_path / 's.xml', SIZE, batch=2, fixed_size=True, logits=True)
    found = compare_masks(model, openvino.load(tmp_path / 's.xml'), batches()[:1])
    assert found.pixels and not found.different and found.max_rel < 1e-5


def test_what_is_not_known_is_refused_by_name(tmp_path):
    def refused(model, words):
        with pytest.raises(UnsupportedModelError) as error:
            export_segmenter(model, tmp_path / 's.onnx', SIZE)
        assert all(word in str(error.value) for word in words), error.value
        assert not list(tmp_path.iterdir())

    refused(segmenter('fcn', mode='slide'), ("mode='slide'", 'whole'))
    model = segmenter('fcn')
    model.decode_head.__class__ = type(
        'Halved', (type(model.decode_head),), dict(predict_by_feat=lambda self, logits, metas: logits / 2)
    )
    refused(model, ('Halved overrides predict_by_feat of FCNHead', '--features'))
    model = segmenter('fcn')
    model.predict = lambda inputs, samples=None: None
    refused(model, ('overrides predict of EncoderDecoder',))
    model = segmenter('fcn')
    model.decode_head = nn.Identity()
    model.decode_head.align_corners = False
    refused(model, ('Identity is not known',))


def test_images_smaller_than_the_head_s_pool_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'EncoderDecoder.*\(3, 64, 96\).*--input'):
        export_segmenter(segmenter('lraspp'), tmp_path / 's.onnx', SIZE)
    assert not list(tmp_path.iterdir())


def test_a_fault_in_the_logits_is_found_where_masks_hide_it():
    model = segmenter('fcn')
    model.decode_head.conv_seg.bias.data[1] = 1e4  # every pixel has this class
    batch = torch.randn(1, *SIZE)
    with torch.no_grad():
        (sample,) = model.predict(batch)
    mask, logits = sample.pred_sem_seg.data, sample.seg_logits.data[None].clone()
    assert compare_masks(model, lambda x: [mask, logits], [batch]).max_rel < 1e-5
    logits[:, 0] *= 1.01
    assert compare_masks(model, lambda x: [mask, logits], [batch]).max_rel > 1e-5
    mask = mask.clone()
    mask[0, 0, 0] = 0
    assert compare_masks(model, lambda x: [mask], [batch]).different == 1


@pytest.mark.parametrize('name', ['psp', 'fcn_one_channel', 'fcn_corners'])
@pytest.mark.parametrize('original', [(100, 150), (40, 60)])
def test_serving_gives_the_mask_of_predict(tmp_path, name, original):
    from mmseg.structures import SegDataSample

    model = segmenter(name)
    told = dict(resize=['exact', 64, 96], interpolation='bilinear', backend='opencv')
    export_segmenter(model, tmp_path / 's.onnx', SIZE, fixed_size=True, logits=True, metadata=told)
    served = Model(tmp_path / 's.onnx', threads=1)
    image = numpy.random.default_rng(0).integers(0, 256, (*original, 3), numpy.uint8)
    inputs = torch.from_numpy(prepare(open_image(image), served.about).array)[None]
    shapes = dict(img_shape=(64, 96), pad_shape=(64, 96), ori_shape=original)
    with torch.no_grad():
        (sample,) = model.predict(inputs, [SegDataSample(metainfo=shapes)])
    expected = sample.pred_sem_seg.data[0].numpy()
    assert len(numpy.unique(expected)) > 1 and served(image).mask.shape == original
    assert numpy.mean(served(image).mask != expected) < 1e-3


@pytest.fixture
def streets(tmp_path):
    """A config with a test set of four images, and a checkpoint."""
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    numbers = numpy.random.default_rng(0)
    for i in range(4):
        pixels = numbers.integers(0, 256, (48, 80, 3), numpy.uint8)
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), pixels)
        cv2.imwrite(str(tmp_path / f'masks/{i}.png'), pixels[..., 0] // 86)
    pipeline = [
        dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=False),
        dict(type='LoadAnnotations'), dict(type='PackSegInputs'),
    ]  # fmt: skip
    dataset = dict(
        type='BaseSegDataset', metainfo=dict(classes=('ant', 'bee', 'cat'), palette=[[0, 0, 0]] * 3),
        data_prefix=dict(img_path=str(tmp_path / 'images'), seg_map_path=str(tmp_path / 'masks')), img_suffix='.png',
        pipeline=pipeline,
    )  # fmt: skip
    Config(dict(
        default_scope='mmseg', custom_imports=dict(imports=['cnv2_plugin']), model=config_of('psp'),
        test_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset),
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']), test_cfg=dict(type='TestLoop'),
    )).dump(str(tmp_path / 'streets.py'))  # fmt: skip
    meta = dict(dataset_meta=dict(classes=('ant', 'bee', 'cat')))
    torch.save(dict(state_dict=segmenter('psp').state_dict(), meta=meta), tmp_path / 'trained.pth')
    return tmp_path


@pytest.mark.slow
@pytest.mark.needs('openvino')
def test_commands_write_and_evaluate_a_segmenter(streets, capsys):
    config, trained = str(streets / 'streets.py'), str(streets / 'trained.pth')
    files = [str(streets / name) for name in ('s.onnx', 's.xml', 's.pth')]
    assert main(['deploy', config, trained, '--out', *files, '--logits']) == 0
    assert 'whole segmenter' in capsys.readouterr().out
    assert main(['deploy', config, trained, '--out', str(streets / 'mask.onnx')]) == 0
    metrics = []
    for number, (config_file, file) in enumerate(
        [(config, trained), (config, files[0]), (str(streets / 's.py'), files[2])]
    ):
        out = streets / f'{number}.json'
        assert main(['test', config_file, file, '--out', str(out), '--work-dir', str(streets / 'work')]) == 0
        metrics.append({name: value for name, value in json.loads(out.read_text()).items() if 'time' not in name})
    assert metrics[0] == metrics[1] == metrics[2] and 0 < metrics[0]['mIoU'] < 100
    capsys.readouterr()
    assert main(['test', config, str(streets / 'mask.onnx'), '--work-dir', str(streets / 'work')]) == 1
    assert '--logits' in capsys.readouterr().err
    answer = Model(streets / 's.onnx')(streets / 'images/0.png')
    assert answer.mask.shape == (48, 80) and answer.names == ['ant', 'bee', 'cat']


@pytest.mark.slow
def test_bad_input_to_commands_is_told_in_a_sentence(streets, capsys):
    config, trained = str(streets / 'streets.py'), str(streets / 'trained.pth')
    for options, words in (
        (['--logits', '--features'], ('--logits', '--features')),
        (['--input', '3', '60', '90'], ('multiples of',)),
    ):
        assert main(['deploy', config, trained, '--out', str(streets / 'x.onnx'), *options]) != 0
        told = capsys.readouterr().err
        assert all(word in told for word in words), told
        assert not (streets / 'x.onnx').exists()

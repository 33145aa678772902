"""Serving: answers of a deployed file are those of the model that it came from."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import timm
import torch
from PIL import Image

from cnv2_plugin import kernels
from tests.errors.cases import check_sentence
from tests.helpers import relative_difference

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from cnv2_plugin.serving import FileKindError, Model
from tests.serving.files import CLASSES, classifier, constant_file

OURS = dict(version='1.0.0', mean='[0, 0, 0]', std='[1, 1, 1]')
BOXES = [[16, 8, 48, 40], [-4, 0, 999, 999], [0, 0, 0, 0]]
FOUND = dict(
    boxes=numpy.float32([BOXES]), scores=numpy.float32([[0.9, 0.2, 0]]), labels=numpy.int64([[1, 0, -1]]),
)  # fmt: skip


@pytest.fixture(scope='module')
def deployed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('deployed')
    return classifier(folder / 'standard.onnx'), folder / 'standard.onnx'


@pytest.fixture(scope='module')
def native(tmp_path_factory):
    path = tmp_path_factory.mktemp('native') / 'native.onnx'
    return classifier(path, native=True), path


def picture(height, width, seed=0):
    small = numpy.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=numpy.uint8)
    return numpy.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def expected(model, image):
    """Scores of timm's own transform and the model in PyTorch."""
    config = {**timm.data.resolve_model_data_config(model), 'input_size': (3, 32, 32)}
    x = timm.data.create_transform(**config, is_training=False)(Image.fromarray(image))
    with torch.no_grad():
        return model(x[None]).softmax(1)[0].numpy()


@pytest.mark.parametrize('size', [(50, 70), (90, 41), (36, 36), (8, 500), (1, 1)])
def test_answers_are_those_of_timm_s_transform_and_the_model(deployed, size):
    model, path = deployed
    image = picture(*size)
    answer = Model(path)(image, top=None)
    scores = expected(model, image)
    assert answer.scores == pytest.approx(scores[answer.labels], abs=1e-6)
    assert list(answer.labels) == list(numpy.argsort(-scores)) and answer.names[0] == CLASSES[scores.argmax()]
    assert answer.scores.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.needs('kernels')
@pytest.mark.smoke
def test_a_native_file_answers_as_the_model(native):
    model, path = native
    images = [picture(50, 70, seed) for seed in range(11)]
    for answer, image in zip(Model(path, threads=2)(images, top=None), images, strict=True):
        assert answer.scores == pytest.approx(expected(model, image)[answer.labels], abs=1e-6)


def test_paths_pictures_and_arrays_are_one(deployed, tmp_path):
    model, image = Model(deployed[1]), picture(40, 60)
    Image.fromarray(image).save(tmp_path / 'a.png')
    turned = Image.fromarray(numpy.rot90(image))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / 'turned.png', exif=exif)
    Image.fromarray(numpy.dstack([image, image[..., :1]])).save(tmp_path / 'alpha.png')
    given = [
        tmp_path / 'a.png',
        (tmp_path / 'a.png').read_bytes(),
        str(tmp_path / 'turned.png'),
        tmp_path / 'alpha.png',
        Image.fromarray(image),
        image,
    ]
    answers = [*model(given), *model(image[None]), model(image), model(given[0]), model(given[1]), model(given[4])]
    assert all(answer.to_dict() == answers[0].to_dict() for answer in answers)
    grey = model(image[..., 0]).to_dict()
    assert grey == model(image[..., :1]).to_dict() == model(numpy.dstack([image[..., 0]] * 3)).to_dict()
    deep = Image.fromarray(image[..., 0].astype(numpy.uint16) * 257)
    assert model(deep).to_dict() == grey
    assert model([]) == []


def test_a_file_of_a_fixed_batch_takes_any_number(deployed, tmp_path):
    classifier(tmp_path / 'three.onnx', batch=3)
    images = [picture(40, 60, seed) for seed in range(4)]
    fixed, free = (Model(path)(images) for path in (tmp_path / 'three.onnx', deployed[1]))
    assert [a.names for a in fixed] == [a.names for a in free] and len(fixed) == 4
    assert all(a.scores == pytest.approx(b.scores, abs=1e-6) for a, b in zip(fixed, free))


@pytest.mark.needs('kernels')
def test_threads_and_sessions_share_a_process(deployed, native):
    """Sessions of both kinds with several numbers of threads, all asked at once."""
    image = picture(50, 70)
    models = [Model(path, threads) for threads in (1, 2, None) for path in (deployed[1], native[1])]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: models[i % 6](image, top=None), range(60)))
    assert all(a.scores == pytest.approx(answers[0].scores, abs=1e-6) for a in answers)


WITHOUT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'onnx', 'cv2', 'rich'):
            raise ModuleNotFoundError(f'no {name}', name=name)

sys.meta_path.insert(0, Block())
import numpy
import cnv2_plugin
from cnv2_plugin.kernels import available, onnxruntime_library
from cnv2_plugin.serving import Model

assert not available() or onnxruntime_library()
image = numpy.arange(60 * 40 * 3, dtype=numpy.uint8).reshape(60, 40, 3)
print(Model(sys.argv[1], int(sys.argv[2]))(image, top=None).scores.tolist())
assert 'torch' not in sys.modules
from cnv2_plugin.cli import main
from PIL import Image
Image.fromarray(image).save(sys.argv[3])
sys.exit(main(['predict', sys.argv[1], sys.argv[3]]))
"""


def test_several_processes_without_pytorch(deployed, native, tmp_path):
    files = [deployed[1], native[1]] if kernels.available() else [deployed[1]]
    command = [sys.executable, '-c', WITHOUT]
    running = [
        subprocess.Popen([*command, path, str(i + 1), tmp_path / f'{i}.png'], stdout=-1, stderr=-1, text=True)
        for i, path in enumerate(files)
    ]
    image = numpy.arange(60 * 40 * 3, dtype=numpy.uint8).reshape(60, 40, 3)
    scores = Model(deployed[1])(image, top=None).scores
    for process in running:
        out, error = process.communicate()
        assert process.returncode == 0, error
        assert eval(out.splitlines()[0]) == pytest.approx(scores, abs=1e-6) and '.png: ' in out


def test_boxes_are_in_pixels_of_the_original(tmp_path):
    """An image of 100 x 200 fits into 64 x 64 at scale 0.32; boxes outside are clipped, empty rows left out."""
    told = dict(OURS, size='[3, 64, 64]', kind='detector', classes='["cat", "dog"]', stride='32')
    model = Model(constant_file(tmp_path / 'd.onnx', told, **FOUND))
    answer = model(picture(100, 200))
    assert answer.names == ['dog', 'cat'] and answer.scores.tolist() == pytest.approx([0.9, 0.2])
    assert answer.boxes == pytest.approx(numpy.float32([[50, 25, 150, 100], [0, 0, 200, 100]]))
    assert answer.masks is None and len(model(picture(100, 200), threshold=0.5).names) == 1
    assert answer.to_dict()['boxes'][0] == [50, 25, 150, 100]


def test_masks_are_pasted_as_mmdetection_does(tmp_path):
    paste = pytest.importorskip('mmdet.models.roi_heads.mask_heads.fcn_mask_head')._do_paste_mask
    masks = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    told = dict(OURS, size='[3, 64, 64]', mask_thr_binary='0.4')
    answer = Model(constant_file(tmp_path / 'd.onnx', told, **FOUND, masks=masks.numpy()))(picture(100, 200))
    assert answer.masks.shape == (2, 100, 200) and answer.masks.dtype == bool
    whole, _ = paste(masks[0, :2, None], torch.from_numpy(answer.boxes), 100, 200, skip_empty=False)
    differing = (torch.from_numpy(answer.masks) != (whole > 0.4)).float().mean((1, 2))
    assert (differing < 0.002).all()


def test_every_pixel_of_the_original_gets_a_class(tmp_path):
    mask = numpy.zeros((1, 64, 64), numpy.int64)
    mask[:, :, 32:] = 2
    told = dict(OURS, kind='segmenter', size='[3, 64, 64]', classes='["a", "b", "c"]', resize='["exact", 64, 64]')
    answer = Model(constant_file(tmp_path / 's.onnx', told, mask=mask))(picture(30, 90))
    assert answer.mask.shape == (30, 90) and (answer.mask[:, :45] == 0).all() and (answer.mask[:, 45:] == 2).all()
    assert answer.to_dict() == dict(names=['a', 'c'], labels=[0, 2], shares=[0.5, 0.5])


LOGITS = numpy.zeros((1, 2), numpy.float32)
FILES = {
    'no ONNX': ({}, dict(), ('file.onnx', '', 'deploy')),
    'of another tool': (dict(about='x'), dict(logits=LOGITS), ('file.onnx', '', 'mean', 'deploy')),
    'of another kind': (OURS, dict(embedding=LOGITS), ('file.onnx', 'embedding', 'classifier', 'detector')),
    'of another told kind': (dict(OURS, kind='pose'), dict(logits=LOGITS), ('file.onnx', 'pose', 'segmenter')),
    'of a newer version': (dict(OURS, version='99.1'), dict(logits=LOGITS), ('file.onnx', '99.1', 'update')),
    'without a size': (OURS, dict(logits=LOGITS), ('size', '', 'size=(C, H, W)')),
    'with means of other channels': (
        dict(OURS, size='[1, 8, 8]'), dict(logits=LOGITS), ('mean', '[0, 0, 0]', 'mean=...')),
    'behind another pipeline': (
        dict(OURS, unsupported='["Albu"]'), dict(logits=LOGITS), ('file.onnx', 'Albu', 'onnxruntime')),
}  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_files_that_cannot_be_served_are_told(name, tmp_path):
    told, outputs, sentence = FILES[name]
    path = tmp_path / 'file.onnx'
    if outputs:
        constant_file(path, told, **outputs)
    else:
        path.write_bytes(b'<html>Sign in to download</html>')
    with pytest.raises(FileKindError) as caught:
        Model(path)
    check_sentence(str(caught.value).replace(str(tmp_path), ''), *sentence)


def test_what_a_file_lacks_can_be_given(tmp_path):
    path = constant_file(tmp_path / 'file.onnx', dict(about='x'), logits=LOGITS + [0, 1])
    model = Model(path, mean=0, std=255, size=(3, 8, 8), classes=('no', 'yes'))
    assert model(picture(9, 9)).names == ['yes', 'no']


def test_a_native_file_without_kernels_is_told(native, monkeypatch):
    def missing():
        raise kernels.KernelsMissingError('they are not built; install cnv2_plugin again.')

    monkeypatch.setattr('cnv2_plugin.serving.model.onnxruntime_library', missing)
    with pytest.raises(kernels.KernelsMissingError) as caught:
        Model(native[1])
    check_sentence(str(caught.value), 'native.onnx', 'kernels', 'install')


@pytest.mark.parametrize(
    ('image', 'kind', 'sentence'),
    [
        ('none.png', ValueError, ('none.png', 'no such file')),
        (numpy.zeros((3, 8, 8), numpy.uint8), TypeError, ('image', '(3, 8, 8)', '(H, W, 3)')),
        (numpy.zeros((8, 8, 3)), TypeError, ('image', 'float64', 'uint8')),
        (numpy.zeros((0, 8, 3), numpy.uint8), ValueError, ('image', '(0, 8, 3)', 'pixel')),
        ([7], TypeError, ('image', 'int', 'path', 'uint8')),
    ],
)
def test_images_that_are_none_are_told(deployed, image, kind, sentence):
    with pytest.raises(kind) as caught:
        Model(deployed[1])(image)
    check_sentence(str(caught.value), *sentence)


def test_wrong_arguments_are_told(deployed, tmp_path):
    with pytest.raises(OSError) as caught:
        Model(tmp_path / 'none.onnx')
    check_sentence(str(caught.value), 'none.onnx', '', 'file')
    with pytest.raises(ValueError) as caught:
        Model(deployed[1], threads=0)
    check_sentence(str(caught.value), 'threads', '0', '1')


PIPELINES = {
    'condensenetv2/condensenetv2-a_8xb128-350e_in1k.py': (0, 1e-5),
    'condensenetv2/condensenetv2-c_8xb128-350e_in1k.py': (0, 1e-5),
    'fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py': (1, 1.01),
    'mmdet/retinanet_condensenetv2-small_fpn_1xb8-12e_fashion-scenes.py': (1, 1.01),
    'mmdet/faster-rcnn_condensenetv2-a_fpn_1x_coco.py': (1, 1.01),
}
"""By config: whether OpenCV resizes, and the largest difference in grey levels that is allowed."""


@pytest.mark.parametrize('name', PIPELINES)
@pytest.mark.parametrize('size', [(120, 90), (64, 200), (20, 24)])
def test_preprocessing_is_that_of_the_config_s_test_pipeline(name, size, tmp_path):
    """Built by OpenMMLab from the config, with its data preprocessor; compared before normalising, in grey levels."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmengine.registry import MODELS, DefaultScope

    from cnv2_plugin.config_files import config_path
    from cnv2_plugin.serving.images import open_image, prepare
    from cnv2_plugin.serving.metadata import describe
    from cnv2_plugin.toolkits.openmmlab.preprocessing import pipeline_of, preprocessing

    cfg = Config.fromfile(config_path(name))
    channels = cfg.model.backbone.get('in_channels', 3)
    image = picture(*size)[..., ::-1] if channels == 3 else picture(*size)[..., 0]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        steps = [step for step in pipeline_of(cfg) if 'Load' not in step['type']]
        data = dict(img=image, img_id=0, img_path='', ori_shape=size, gt_label=0)
        packed = Compose(steps)(dict(data, img_shape=size, height=size[0], width=size[1]))
        options = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
        options = dict(options, type=options.get('type', 'ClsDataPreprocessor'))
        wanted = MODELS.build(options)(pseudo_collate([packed]))['inputs'][0].numpy()
    told = preprocessing(cfg)
    shape = ['N', channels, *(('H', 'W') if cfg.default_scope == 'mmdet' else wanted.shape[1:])]
    about = describe('x', {}, shape, ['boxes' if cfg.default_scope == 'mmdet' else 'logits'],
                     {**told, 'size': [channels, *wanted.shape[1:]]})  # fmt: skip
    grey = Image.fromarray(image[..., ::-1] if channels == 3 else image)
    found = prepare(open_image(grey, 'RGB' if channels == 3 else 'L'), about).array
    assert found.shape == wanted.shape
    levels = numpy.abs(found - wanted) * numpy.float32(about.std)[:, None, None]
    assert levels.max() <= PIPELINES[name][1]
    assert relative_difference(torch.from_numpy(found), torch.from_numpy(wanted)) < 0.02

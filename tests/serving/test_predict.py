"""``cnv2 predict`` as it is typed."""

import json

import numpy
import pytest
from PIL import Image

from cnv2_plugin import kernels
from cnv2_plugin.cli import main
from tests.errors.cases import check_sentence

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from tests.serving.files import CLASSES, classifier, constant_file
from tests.serving.test_serving import FOUND, OURS, picture


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Files, and images of which one cannot be read."""
    folder = tmp_path_factory.mktemp('predict')
    classifier(folder / 'c.onnx')
    constant_file(folder / 'd.onnx', dict(OURS, size='[3, 64, 64]', classes='["cat", "dög"]'), **FOUND)
    masks = numpy.ones((1, 3, 8, 8), numpy.float32)
    constant_file(folder / 'm.onnx', dict(OURS, size='[3, 64, 64]'), **FOUND, masks=masks)
    segments = numpy.zeros((1, 64, 64), numpy.int64)
    constant_file(folder / 's.onnx', dict(OURS, size='[3, 64, 64]', resize='["exact", 64, 64]'), mask=segments)
    (folder / 'images/more').mkdir(parents=True)
    for i, name in enumerate(('a.png', 'b.jpg', 'more/a.png')):
        Image.fromarray(picture(100, 200, i)).save(folder / 'images' / name)
    (folder / 'images/broken.png').write_bytes((folder / 'images/a.png').read_bytes()[:200])
    return folder


@pytest.mark.parametrize('kind', ['c', 'd', 'm', 's'])
def test_answers_are_printed_drawn_and_go_on_past_what_cannot_be_read(kind, folder, tmp_path, capsys):
    out = tmp_path / 'out'
    assert main(['predict', str(folder / f'{kind}.onnx'), str(folder / 'images'), '--out', str(out)]) == 1
    printed, told = capsys.readouterr()
    lines = printed.splitlines()
    assert len(lines) == 3 and all(line.startswith(str(folder / 'images')) for line in lines)
    words = dict(c=CLASSES[0], d='dög 0.900 at 50 25 150 100', m='1 0.900', s='0 100.0%')
    assert all(words[kind] in line for line in lines)
    first, last = told.splitlines()
    check_sentence(first, 'image', 'broken.png')
    assert 'predict' in last and '1 of 4' in last
    assert sorted(path.name for path in out.iterdir()) == ['a-1.png', 'a.png', 'b.png']
    original, drawn = (numpy.asarray(Image.open(path)) for path in (folder / 'images/a.png', out / 'a.png'))
    assert drawn.shape == original.shape and (drawn != original).any()


def test_json_is_alone_on_stdout(folder, capsys):
    images = [str(folder / 'images' / name) for name in ('a.png', 'none.png')]
    assert main(['predict', str(folder / 'd.onnx'), *images, '--json']) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed['kind'] == 'detector' and list(printed['failures']) == images[1:]
    answer = printed['answers'][images[0]]
    assert answer['names'] == ['dög'] and answer['boxes'] == [[50, 25, 150, 100]]
    assert main(['predict', str(folder / 'c.onnx'), images[0], '--json', '--top', '2']) == 0
    answer = json.loads(capsys.readouterr().out)['answers'][images[0]]
    assert len(answer['names']) == 2 and answer['scores'] == sorted(answer['scores'], reverse=True)


@pytest.mark.parametrize(
    ('arguments', 'code', 'sentence'),
    [
        (['none.onnx', 'a.png'], 1, ('none.onnx', '', 'file')),
        (['images/a.png', 'images/a.png'], 1, ('images/a.png', 'ONNX')),
        (['c.onnx', 'empty'], 1, ('empty', '', '.png')),
        (['c.onnx', 'images/a.png', '--top', '0'], 2, ('--top', '0', '1')),
        (['c.onnx', 'images/a.png', '--threshold', '2'], 2, ('--threshold', '2.0', '0')),
        (['c.onnx', 'images/a.png', '--threads', '0'], 1, ('threads', '0', '1')),
        (['c.onnx', 'images/a.png', '--out', 'c.onnx'], 1, ('c.onnx', '', 'path')),
    ],
)
def test_wrong_uses_are_one_sentence(arguments, code, sentence, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / 'empty').mkdir(exist_ok=True)
    before = sorted(folder.rglob('*'))
    assert main(['predict', *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('cnv2 predict: ')
    check_sentence(line, *sentence)
    assert sorted(folder.rglob('*')) == before


def test_an_empty_folder_beside_images_is_told_and_the_rest_goes_on(folder, tmp_path, capsys):
    assert main(['predict', str(folder / 'c.onnx'), str(tmp_path), str(folder / 'images/a.png')]) == 1
    printed, told = capsys.readouterr()
    assert len(printed.splitlines()) == 1 and 'a.png: ' in printed
    first, last = told.splitlines()
    check_sentence(first, str(tmp_path), '', '.png')
    assert '1 of 2' in last


def test_files_that_do_not_serve_are_one_sentence_and_nothing_is_written(folder, tmp_path, monkeypatch, capsys):
    whole = (folder / 'c.onnx').read_bytes()
    (tmp_path / 'half.onnx').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'empty.onnx').touch()
    constant_file(tmp_path / 'newer.onnx', dict(OURS, version='99.1'), **FOUND)
    classifier(tmp_path / 'native.onnx', native=True) if kernels.available() else None

    def missing():
        raise kernels.KernelsMissingError('they are not built; install cnv2_plugin again.')

    monkeypatch.setattr('cnv2_plugin.serving.model.onnxruntime_library', missing)
    remedies = dict(
        half=('ONNX', 'copy'), empty=('ONNX', 'copy'), newer=('99.1', 'update'), native=('kernels', 'install')
    )
    files = sorted(tmp_path.glob('*.onnx'))
    for file in files:
        assert main(['predict', str(file), str(folder / 'images/a.png'), '--out', str(tmp_path / 'out')]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        check_sentence(line, file.name, *remedies[file.stem])
    assert sorted(tmp_path.iterdir()) == files


def test_progress_is_shown_on_a_terminal(folder, monkeypatch, capsys):
    monkeypatch.setattr('sys.stderr.isatty', lambda: True, raising=False)
    arguments = ['predict', str(folder / 'c.onnx'), str(folder / 'images/a.png')]
    assert main(arguments) == 0 and '1 of 1' in capsys.readouterr().err
    assert main([*arguments, '--quiet']) == 0 and not capsys.readouterr().err

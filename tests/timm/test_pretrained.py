"""``pretrained=True``: released addresses over a loopback server, files, folders, hubs, and refusals."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
import torchvision

from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.checkpoints import CheckpointError, save_checkpoint
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import UnfinishedPruningError
from cnv2_plugin.toolkits.timm import pretrained as pretrained_module
from cnv2_plugin.toolkits.timm import save_for_hub
from tests.helpers import installed

from ..helpers import finish_pruning, randomize_norms, relative_difference
from ..reference import official
from .stand_ins import in_the_hub

NAME = 'condensenetv2_c'
NET = official.small('c')
ARCH = dict(layers=list(NET.layers), growth=list(NET.growth), se_from=4, hswish_from=3, head_width=1024)

OWN = {
    'condensenetv2': dict(layers=[1, 2], growth=[8, 16], se_from=2, hswish_from=2, head_width=24),
    'condensenet': dict(layers=[2, 2], growth=[8, 16], stem_stride=1),
    'sfr_shufflenetv2': dict(channels=[20, 48], repeats=[3, 2], final_width=40),
}


@pytest.fixture(scope='module')
def state():
    return official.random_state_dict(NET, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def released(state, tmp_path_factory):
    """A file of the released layout: a Namespace, plain and averaged weights; the averaged ones are the ones to use."""
    path = tmp_path_factory.mktemp('released') / 'checkpoint.pth.tar'
    plain = official.random_state_dict(NET, generator=torch.Generator().manual_seed(1))
    torch.save(official.training_file(plain, NET, ema=state), path)
    return path


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def expected(state, images):
    return official.forward(state, images, NET)


class Server:
    """Serves one body at any path and remembers what was asked."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(status)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}/f/4e4a5246fc6249829ab0/?dl=1'

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def create(source: dict, name: str = NAME, **kwargs):
    kwargs = dict(arch=ARCH, num_classes=10, **kwargs) if 'num_classes' not in kwargs else dict(arch=ARCH, **kwargs)
    overlay = dict(num_classes=10, **source)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def test_the_address_of_c_is_the_released_one():
    config = timm.get_pretrained_cfg(NAME)
    assert config.url == VARIANTS[NAME].url and config.url.endswith('/?dl=1')


@pytest.mark.parametrize('cache', ['cache_dir', "torch.hub's"])
def test_address_is_fetched_once_under_our_own_name(cache, released, images, expected, tmp_path, capfd, monkeypatch):
    if cache == 'cache_dir' and installed('timm<=1.0.9'):
        pytest.skip('timm 1.0.9 takes no cache_dir')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    folder, kwargs = tmp_path / 'checkpoints', {}
    if cache == 'cache_dir':
        folder = tmp_path / 'own'
        kwargs = dict(cache_dir=folder)
    with Server(released.read_bytes()) as server:
        for _ in range(2):
            model = create(dict(url=server.url), **kwargs)
            with torch.no_grad():
                assert relative_difference(model(images), expected) < 1e-5
        assert server.asked == ['/f/4e4a5246fc6249829ab0/?dl=1']
    assert list(tmp_path.iterdir()) == [folder]
    (file,) = folder.iterdir()
    assert file.name.startswith(NAME) and file.suffix == '.pth'
    assert capfd.readouterr().err == ''
    assert 'state_dict' not in model.pretrained_cfg and model.default_cfg is model.pretrained_cfg


def test_a_terminal_gets_a_progress_bar(released, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with Server(released.read_bytes()) as server:
        pretrained_module.download(server.url, NAME, tmp_path)
    assert '100%' in capsys.readouterr().err


def test_address_uses_the_hub_folder_by_default(released, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with Server(released.read_bytes()) as server:
        create(dict(url=server.url))
    assert [p.parent.name for p in tmp_path.rglob('*.pth')] == ['checkpoints']


@pytest.mark.parametrize(
    'body', [b'', b'<html>Log in to continue</html>', 'truncated'], ids=['empty', 'page', 'truncated']
)
def test_what_is_no_checkpoint_is_not_kept(released, body, tmp_path):
    body = released.read_bytes()[:100000] if body == 'truncated' else body
    with Server(body) as server, pytest.raises(CheckpointError, match='gave no checkpoint .*drive.google.com'):
        create(dict(url=server.url), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_is_named(tmp_path):
    with Server(b'', status=404) as server, pytest.raises(CheckpointError, match='404'):
        create(dict(url=server.url), cache_dir=tmp_path)


@pytest.mark.parametrize('deploy', [False, True])
def test_file_with_other_classes(released, state, images, deploy):
    model = create(dict(file=str(released)), num_classes=7, deploy=deploy)
    features = official.forward_features(state, images, NET)
    with torch.no_grad():
        assert model(images).shape == (2, 7)
        for a, b in zip(model.forward_intermediates(images, intermediates_only=True), features):
            assert relative_difference(a, b) < 1e-5


@pytest.mark.parametrize('deploy', [False, True])
def test_file_with_one_channel(released, images, deploy):
    grey = images[:, :1]
    model = create(dict(file=str(released)), in_chans=1, deploy=deploy)
    whole = create(dict(file=str(released)))
    with torch.no_grad():
        assert relative_difference(model(grey), whole(grey.expand(-1, 3, -1, -1))) < 1e-5


@pytest.mark.parametrize('deploy', [False, True])
def test_file_with_features_only(released, state, images, deploy):
    model = create(dict(file=str(released)), features_only=True, deploy=deploy)
    with torch.no_grad():
        for a, b in zip(model(images), official.forward_features(state, images, NET)):
            assert relative_difference(a, b) < 1e-5


def test_file_with_deploy(released, images, expected):
    model = create(dict(file=str(released)), deploy=True)
    assert model.deploy and not any(key.endswith('mask') for key in model.state_dict())
    with torch.no_grad():
        assert relative_difference(model(images), expected) < 1e-5


def test_converted_file(state, images, expected, tmp_path):
    torch.save(official.converted_file(official.convert(state, NET), NET), tmp_path / 'converted.pth')
    for deploy in (False, True):
        model = create(dict(file=str(tmp_path / 'converted.pth')), deploy=deploy)
        with torch.no_grad():
            assert relative_difference(model(images), expected) < 1e-5


def test_halved_classifier(images, tmp_path):
    net = official.small('74-g8')
    state = official.convert(official.random_state_dict(net), net, drop_classifier_inputs=True)
    torch.save(official.converted_file(state, net), tmp_path / 'converted.pth')
    arch = dict(layers=list(net.layers), growth=list(net.growth))
    for kwargs in ({}, dict(deploy=True), dict(deploy=True, classifier_keep=0.5)):
        model = timm.create_model(
            'condensenet_74_g8', pretrained=True, arch=arch, num_classes=10,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'converted.pth'), num_classes=10), **kwargs,
        ).eval()  # fmt: skip
        with torch.no_grad():
            assert relative_difference(model(images), official.forward(state, images, net)) < 1e-5
        halved = model.classifier.in_features == model.num_features // 2
        assert halved == ('classifier_keep' in kwargs)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('name', OWN)
def test_our_own_files(name, suffix, tmp_path):
    model = finish_pruning(randomize_norms(timm.create_model(name, arch=OWN[name]))).eval()
    x = torch.randn(1, 3, 32, 32)
    path = tmp_path / f'own{suffix}'
    save_checkpoint(model.state_dict(), path)
    source = dict(pretrained_cfg_overlay=dict(file=str(path)), pretrained=True, arch=OWN[name])
    with torch.no_grad():
        assert torch.equal(timm.create_model(name, **source).eval()(x), model(x))
        assert relative_difference(timm.create_model(name, deploy=True, **source).eval()(x), model(x)) < 1e-5
        condensed = condense(model)
        save_checkpoint(condensed.state_dict(), path)
        assert torch.equal(timm.create_model(name, deploy=True, **source).eval()(x), condensed(x))
    with pytest.raises(RuntimeError, match='build the model with deploy=True'):
        timm.create_model(name, **source)


def test_an_unfinished_file_has_no_deployed_form(tmp_path):
    save_checkpoint(timm.create_model('condensenetv2_a').state_dict(), tmp_path / 'own.pth')
    source = dict(pretrained_cfg_overlay=dict(file=str(tmp_path / 'own.pth')), pretrained=True)
    timm.create_model('condensenetv2_a', **source)
    with pytest.raises(UnfinishedPruningError, match='stage 0 of 7'):
        timm.create_model('condensenetv2_a', deploy=True, **source)


@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenetv2_b', 'condensenet_74_g4', 'condensenet_74_g8'])
def test_shared_drive_pages_are_named(name):
    with pytest.raises(RuntimeError) as error:
        timm.create_model(name, pretrained=True)
    message = str(error.value)
    assert VARIANTS[name].weights_page in message
    assert f'cnv2 import-official FILE --out {name}.pth' in message
    assert message.count('\n') == 0


@pytest.mark.parametrize(
    'name', ['condensenetv2_110_cifar', 'shufflenetv2_x1_0', 'sfr_shufflenetv2_x1_0', 'condensenetv2']
)
def test_variants_without_released_weights_say_so(name):
    with pytest.raises(RuntimeError, match=f'No weights of {name} were released'):
        timm.create_model(name, pretrained=True)


def test_files_of_other_networks_are_refused(released, tmp_path):
    with pytest.raises(CheckpointError, match='the tensors need layers'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(released)))
    with pytest.raises(CheckpointError, match='holds a CondenseNet'):
        timm.create_model('shufflenetv2_x0_5', pretrained=True, pretrained_cfg_overlay=dict(file=str(released)))
    with pytest.raises(CheckpointError, match='is not a file'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'none.pth')))


def test_torchvision_file(tmp_path):
    theirs = randomize_norms(torchvision.models.shufflenet_v2_x0_5()).eval()
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    source = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'theirs.pth')))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(timm.create_model('shufflenetv2_x0_5', **source).eval()(x), theirs(x)) < 1e-5
    with pytest.raises(CheckpointError, match='init_from_shufflenet'):
        timm.create_model('sfr_shufflenetv2_x0_5', **source)


@pytest.mark.parametrize('source', ['local-dir', 'hf-hub'])
@pytest.mark.parametrize('form', ['training', 'deployed', 'deployed, classifier halved'])
@pytest.mark.parametrize('name', [*OWN, 'sfr_shufflenetv2_x0_5'])
def test_hub_folders_load_back(name, form, source, tmp_path, monkeypatch):
    kwargs = dict(arch=OWN[name]) if name in OWN else {}
    model = finish_pruning(randomize_norms(timm.create_model(name, num_classes=6, **kwargs))).eval()
    if form == 'deployed':
        model.switch_to_deploy()
    elif form != 'training':
        model = condense(model, classifier_keep=0.5)
    save_for_hub(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {'README.md', 'config.json', 'model.safetensors'}
    assert json.loads((tmp_path / 'config.json').read_text())['architecture'] == name
    if source == 'local-dir' and installed('timm<1.0.16'):
        pytest.skip('timm before 1.0.16 has no local-dir:')
    location = f'local-dir:{tmp_path}' if source == 'local-dir' else in_the_hub(tmp_path, monkeypatch)
    loaded = timm.create_model(location, pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert timm.create_model(location, pretrained=True, num_classes=3).eval()(x).shape == (2, 3)
    assert loaded.deploy == (form != 'training')
    if form == 'training':
        with torch.no_grad():
            deployed = timm.create_model(location, pretrained=True, deploy=True).eval()
            assert relative_difference(deployed(x), model(x)) < 1e-5


def test_a_deployed_model_with_a_new_classifier_is_saved_as_it_is(tmp_path, monkeypatch):
    model = condense(finish_pruning(timm.create_model('condensenet_50_cifar')), classifier_keep=0.5)
    model.reset_classifier(3)
    save_for_hub(model, tmp_path)
    read = timm.create_model(in_the_hub(tmp_path, monkeypatch), pretrained=True)
    assert read.classifier.in_features == model.num_features


def test_only_timm_models_are_saved_for_the_hub(tmp_path):
    with pytest.raises(ValueError, match='timm.create_model'):
        save_for_hub(torch.nn.Linear(2, 2), tmp_path)


def test_filter_accepts_what_timm_hands_over(state, images, expected):
    model = create(dict(state_dict=dict(state)))
    with torch.no_grad():
        assert relative_difference(model(images), expected) < 1e-5
    assert pretrained_module.filter_checkpoint(model.state_dict(), model).keys() == model.state_dict().keys()

"""The HTML report, its commands, and how it looks in a browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import timm
import torch

from cnv2_plugin.analysis.report_log import read_log
from cnv2_plugin.checkpoints import save_checkpoint
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import condense
from cnv2_plugin.toolkits.key_map import convert_keys
from tests.helpers import finish_pruning, randomize_norms

ARCH = dict(layers=[2, 2], growth=[8, 16], groups_1x1=4, groups_3x3=4, condense_factor=4, se_from=2, head_width=16)
INPUT = ['--input', '1', '32', '32']
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(0)
    kwargs = dict(arch=ARCH, in_chans=1, num_classes=3)
    model = finish_pruning(randomize_norms(timm.create_model('condensenetv2', **kwargs))).eval()
    meta = dict(arch='condensenetv2', model_kwargs=kwargs)
    condensed = condense(model).state_dict()
    save_checkpoint(model.state_dict(), folder / 'trained.pth', meta)
    save_checkpoint(model.state_dict(), folder / 'trained.safetensors', meta)
    save_checkpoint(condensed, folder / 'condensed.pth', {**meta, 'deploy': True})
    save_checkpoint(convert_keys(model.state_dict(), 'mmpretrain')[0], folder / 'mmpretrain.pth', meta)
    (folder / 'log.csv').write_text('epoch,train_loss,eval_top1\n0,2.5,10\n1,1.5,<b>\n2,1.25,40\n')
    return folder


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href')]

    def handle_data(self, data):
        self.text += data


@pytest.mark.needs('matplotlib', 'jinja2')
def test_the_page_is_whole_and_self_contained(files, tmp_path, capsys):
    out = tmp_path / 'r.html'
    arguments = ['report', str(files / 'trained.pth'), '--out', str(out), '--log', str(files / 'log.csv'), *INPUT]
    assert main([*arguments, '--rounds', '0']) == 0
    page = Page(out.read_text())
    headings = ['Architecture', 'Cost', 'Sparsity', 'Connection maps', 'Training', 'Deployment']
    assert [heading for heading in headings if heading in page.text] == headings
    assert len(page.addresses) == 4 and all(a.startswith('data:image/svg+xml;base64,') for a in page.addresses)
    assert 'script' not in page.tags and 'http' not in re.sub('base64,[^"]*', '', out.read_text()).replace(
        'http-eq', ''
    )
    difference = float(re.search(r'largest relative difference\s*([\d.e+-]+)', page.text).group(1))
    assert difference <= 1e-5 and '16 x 16 x 16' in page.text and 'train_loss' in page.text
    assert [p.name for p in tmp_path.iterdir()] == ['r.html']


@pytest.mark.needs('matplotlib', 'jinja2')
@pytest.mark.parametrize('name', ['condensed.pth', 'trained.safetensors', 'mmpretrain.pth'])
def test_every_kind_of_checkpoint(files, tmp_path, capsys, name):
    checkpoint = str(files / name)
    assert main(['sparsity', checkpoint, '--csv', str(tmp_path / 's.csv'), '--plot', str(tmp_path / 's.svg')]) == 0
    assert 'never read by a later layer' in ' '.join(capsys.readouterr().out.split())
    assert main(['heatmap', checkpoint, '--out', str(tmp_path / 'maps')]) == 0
    assert {p.name for p in (tmp_path / 'maps').iterdir()} == {'lgc.png', 'lgc.csv', 'sfr.png', 'sfr.csv'}
    assert (tmp_path / 'maps/sfr.csv').read_text().count('\n') > 4


@pytest.mark.needs('matplotlib', 'jinja2')
def test_condensed_and_half_pruned_models_are_told_apart(files, tmp_path, capsys):
    out = tmp_path / 'r.html'
    assert main(['report', str(files / 'condensed.pth'), '--out', str(out), *INPUT, '--rounds', '0']) == 0
    assert 'in its deployed form already' in out.read_text() and 'Latency' not in out.read_text()
    half = timm.create_model('condensenetv2', arch=ARCH, in_chans=1, num_classes=3)
    save_checkpoint(half.state_dict(), tmp_path / 'half.pth', dict(arch='condensenetv2', model_kwargs=dict(arch=ARCH)))
    assert main(['report', str(tmp_path / 'half.pth'), '--out', str(out), *INPUT]) == 0
    assert 'cannot be condensed yet' in out.read_text()


@pytest.mark.needs('matplotlib', 'jinja2')
def test_two_networks_side_by_side(tmp_path, capsys):
    arguments = ['heatmap', 'condensenet_50_cifar', 'condensenetv2_a', '--out', str(tmp_path), '--titles', 'one', 'two']
    assert main([*arguments, '--format', 'svg']) == 0
    printed = capsys.readouterr().out
    assert 'lgc.svg and .csv: one, two' in printed and 'sfr.svg and .csv: two' in printed


def test_a_named_checkpoint_without_its_name_is_recognised(tmp_path, capsys):
    model = finish_pruning(timm.create_model('condensenet_50_cifar', num_classes=5))
    torch.save({'state_dict': {f'module.{k}': v for k, v in model.state_dict().items()}}, tmp_path / 'x.pth')
    assert main(['sparsity', str(tmp_path / 'x.pth'), '--markdown']) == 0
    assert main(['sparsity', str(tmp_path / 'x.pth'), '--arch', 'condensenetv2_a']) == 1
    assert 'does not fit condensenetv2_a' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'content', 'curves'),
    [
        ('summary.csv', 'epoch,loss\n0,2\n1,1\n', {'loss': ((0, 1), (2, 1))}),
        ('scalars.json', '{"loss": 2, "step": 5}\n{"top1": 50, "step": 9}\n{"',
         {'loss': ((5,), (2,)), 'top1': ((9,), (50,))}),
        ('figures.json', '{"history": {"loss": [3, 2], "stages": [{}]}}', {'loss': ((1, 2), (3, 2))}),
    ],
)  # fmt: skip
def test_logs_of_every_toolkit(tmp_path, name, content, curves):
    (tmp_path / name).write_text(content)
    assert {c.name: (c.x, c.y) for c in read_log(tmp_path / name)} == curves


def test_what_is_no_log(tmp_path):
    for name, content in (('a.csv', ''), ('b.json', '[1, 2]'), ('c.json', 'hello'), ('d.csv', 'a,b\nx,nan\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match='no training curve'):
            read_log(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: apt-get install chromium')
def test_the_page_in_a_browser(files, tmp_path):
    from PIL import Image

    out, picture = tmp_path / 'r.html', tmp_path / 'r.png'
    arguments = ['report', str(files / 'trained.pth'), '--out', str(out), '--log', str(files / 'log.csv'), *INPUT]
    assert main([*arguments, '--rounds', '1']) == 0
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1000,4000']
    command += [f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=5000']
    subprocess.run([*command, f'--screenshot={picture}', out.as_uri()], check=True, capture_output=True, timeout=240)
    image = Image.open(picture).convert('RGB')
    assert image.size == (1000, 4000)
    colours = {image.getpixel((x, y)) for x in range(40, 700, 9) for y in range(0, 4000, 9)}
    assert len(colours) > 60, 'the maps are drawn in many colours'
    dumped = subprocess.run([*command, '--dump-dom', out.as_uri()], check=True, capture_output=True, timeout=240)
    assert b'largest relative difference' in dumped.stdout and b'Latency' in dumped.stdout
    count = 'document.title=[...document.images].filter(i=>i.complete&&i.naturalWidth>300).length'
    script = f'<script>onload=()=>{{{count}}}</script>'
    page = out.read_text()
    policy = re.search('<meta http-equiv[^>]*>', page).group()
    (tmp_path / 'counted.html').write_text(page.replace(policy, '').replace('</body>', f'{script}</body>'))
    counted = subprocess.run(
        [*command, '--dump-dom', (tmp_path / 'counted.html').as_uri()], check=True, capture_output=True, timeout=240
    )
    assert b'<title>4</title>' in counted.stdout

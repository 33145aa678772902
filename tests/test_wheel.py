"""What pip installs: sdist and wheel, in fresh environments away from the checkout, used as a new user would."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cnv2_plugin import __version__

ROOT = Path(__file__).parents[1]
NAME = 'fashion_mnist/condensenetv2-small_1xb64-5e_fashion-mnist.py'
SHORT = [
    'train_dataloader.dataset.indices=192', 'train_dataloader.batch_size=32', 'train_cfg.max_epochs=1',
    'val_dataloader.dataset.indices=100', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1',
    'log_level=WARNING',
]  # fmt: skip
"""Six iterations."""

OF_THE_CHECKOUT = (
    '__init__.py', 'build_wheels.sh', 'draw_architecture.py', 'gpu_check.sh', 'make_touching_pairs.py',
    'mutate.py', 'mutate.sh', 'quickstart.py', 'quickstart.sh',
    'run_tests.sh', '_environment.sh', '_stack.sh', 'research/', 'docs_site/',
)  # fmt: skip
"""Tools that need the repository around them."""

LARGEST = 800_000
"""Bytes of the wheel without kernels."""

INFER = """
import json, numpy, cnv2_plugin, mmpretrain

image = numpy.random.default_rng(0).integers(0, 256, (28, 28), dtype=numpy.uint8)
inferencer = mmpretrain.ImageClassificationInferencer('deployed.py', pretrained='deployed.pth')
name = 'condensenetv2-small_1xb64-5e_fashion-mnist'
trained = mmpretrain.get_model(name, 'runs/user/epoch_1.pth')
deployed = mmpretrain.get_model(name, 'deployed.pth', backbone=dict(deploy=True))
results = [inferencer(image)[0], *(mmpretrain.inference_model(model, image) for model in (trained, deployed))]
print()  # ends the line of the toolkit's progress bar
print(cnv2_plugin.__file__)
print(json.dumps([result['pred_scores'].tolist() for result in results]))
print(results[0]['pred_class'], len(mmpretrain.list_models('*condense*')))
"""


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """The sdist of the checkout, and the wheel that is built from that sdist; without kernels, to save a minute."""
    folder = tmp_path_factory.mktemp('archives')
    source = folder / 'source'
    unwanted = ('.git', 'data', 'work_dirs', '.venv', 'build', 'dist', '*.egg-info', '__pycache__', '.*_cache', '*.so')
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*unwanted))
    call([sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, source], folder, CNV2_NO_KERNELS='1')
    (sdist,), (wheel,) = folder.glob('*.tar.gz'), folder.glob('*.whl')
    return sdist, wheel


def call(command: list, folder: Path, **environment: str) -> str:
    """Run away from the checkout and from this process's search path."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'VIRTUAL_ENV'))}
    environment = {**inherited, 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1', **environment}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def install(archive: Path, folder: Path) -> Path:
    """A fresh environment with the archive installed, or a folder of sources as editable; returns its Python.

    It sees the packages of the running interpreter, but not its editable installations: those come through ``.pth``
    files, which Python reads in an environment's own folder alone.
    """
    call([sys.executable, '-m', 'venv', '--without-pip', folder], folder.parent)
    python = folder / 'bin/python'
    (packages,) = (folder / 'lib').glob('python3*/site-packages')
    shared = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    (packages / 'shared.pth').write_text('\n'.join(shared) + '\n')
    options = ['--quiet', '--no-deps', '--no-index', '--no-build-isolation', '--ignore-installed']
    what = ['--editable', archive] if archive.is_dir() else [archive]
    call([python, '-m', 'pip', 'install', *options, *what], folder, CNV2_NO_KERNELS='1')
    place = call([python, '-c', 'import cnv2_plugin; print(cnv2_plugin.__file__)'], folder).strip()
    assert Path(place) == (archive if archive.is_dir() else packages) / 'cnv2_plugin/__init__.py'
    return python


def shipped() -> set[str]:
    """Files below ``.mim`` that an installed package has."""
    found = [path for name in ('configs', 'tools') for path in (ROOT / name).rglob('*') if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in found if '__pycache__' not in path.parts}
    unwanted = tuple(f'tools/{name}' for name in OF_THE_CHECKOUT)
    return {'model-index.yml', *(name for name in names if not name.startswith(unwanted))}


@pytest.mark.slow
def test_archives_hold_what_an_installation_needs(archives):
    sdist, wheel = archives
    call([sys.executable, '-m', 'twine', 'check', '--strict', sdist, wheel], sdist.parent)
    prefix = 'cnv2_plugin/.mim/'
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith('/')]
    assert {name[len(prefix) :] for name in names if name.startswith(prefix)} == shipped()
    folders = {name.partition('/')[0] for name in names}
    assert folders == {'cnv2_plugin', f'cnv2_plugin-{__version__}.dist-info'} and len(names) == len(set(names))
    assert not [name for name in names if 'research' in name or 'results' in name or 'experiments' in name]
    assert wheel.stat().st_size < LARGEST
    inside = {name.partition('/')[2] for name in tarfile.open(sdist).getnames()}
    assert {f'configs/{NAME}', 'requirements/core.txt', 'cnv2_plugin/kernels/csrc/api.cpp'} <= inside
    assert not [name for name in inside if '.mim' in name]


@pytest.mark.slow
def test_a_new_user_trains_deploys_and_infers_from_the_wheel(archives, tmp_path):
    python = install(archives[1], tmp_path / 'environment')
    work = tmp_path / 'work'
    work.mkdir()
    mim = next((tmp_path / 'environment/lib').glob('python3*')) / 'site-packages/cnv2_plugin/.mim'
    call([python, mim / 'tools/prepare_fashion_mnist.py', 'data/fashion_mnist', '--digits'], work)
    (work / 'user.py').write_text(f"_base_ = 'cnv2_plugin::{NAME}'\nwork_dir = 'runs/user'\n")
    cnv2 = [python.with_name('cnv2')]
    call([*cnv2, 'train', 'user.py', '--cfg-options', *SHORT], work)
    call([*cnv2, 'train', f'cnv2_plugin::{NAME}', '--work-dir', 'runs/name', '--cfg-options', *SHORT], work)
    call([*cnv2, 'configs', Path(NAME).stem, '--copy', 'mine'], work)
    script = call([python, '-c', 'import mmpretrain; print(mmpretrain.__path__[0])'], work).strip()
    script = Path(script, '.mim/tools/train.py')
    call([python, script, Path('mine', Path(NAME).name), '--work-dir', 'runs/copy', '--cfg-options', *SHORT], work)
    assert all((work / 'runs' / name / 'epoch_1.pth').is_file() for name in ('user', 'name', 'copy'))
    call([*cnv2, 'deploy', 'user.py', 'runs/user/epoch_1.pth', '--out', 'deployed.pth'], work)
    place, scores, last = call([python, '-c', INFER], work).strip().splitlines()[-3:]
    assert Path(place).is_relative_to(tmp_path)
    scores = json.loads(scores)
    assert len(scores[0]) == 10 and sum(scores[0]) == pytest.approx(1, abs=1e-3)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) and scores[0] == pytest.approx(scores[2], abs=1e-6)
    listed = json.loads(call([*cnv2, 'configs', '--json'], work))['tables'][0]['rows']
    names = [row[0] for row in listed]
    assert int(last.split()[-1]) == sum('condense' in name and not name.startswith('mmdet') for name in names)


@pytest.mark.slow
def test_mim_lists_searches_trains_and_runs_the_wheel(archives, tmp_path):
    mim = pytest.importorskip('mim', reason='openmim is not installed')
    python = install(archives[1], tmp_path / 'environment')
    (packages,) = (tmp_path / 'environment/lib').glob('python3*/site-packages')
    (packages / 'mim.pth').write_text(f'{Path(mim.__file__).parents[1]}\n')
    work = tmp_path / 'work'
    work.mkdir()
    command = [python, '-m', 'mim']
    listed = call([*command, 'list'], work)
    assert ['cnv2-plugin', __version__] in [line.split()[:2] for line in listed.splitlines()]
    assert f'config id: {Path(NAME).stem}\n' in call([*command, 'search', 'cnv2_plugin'], work)
    call([*command, 'run', 'cnv2_plugin', 'prepare_fashion_mnist', 'data/fashion_mnist', '--digits'], work)
    options = ['--work-dir', 'runs', '--cfg-options', *SHORT]
    call([*command, 'train', 'cnv2_plugin', Path(NAME).name, *options], work)
    assert (work / 'runs/epoch_1.pth').is_file()
    options = ['--checkpoint', 'runs/epoch_1.pth', '--cfg-options', 'test_dataloader.dataset.indices=100']
    assert 'accuracy/top1' in call([*command, 'test', 'cnv2_plugin', Path(NAME).name, *options], work)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['sdist', 'editable'])
def test_a_detector_reads_its_config_from_other_installations(archives, kind, tmp_path):
    python = install(archives[0] if kind == 'sdist' else archives[0].parent / 'source', tmp_path / 'environment')
    name = 'mmdet/retinanet_condensenetv2-small_sfrfpn_1xb8-12e_fashion-scenes.py'
    (tmp_path / 'user.py').write_text(f"_base_ = __import__('cnv2_plugin') and 'cnv2_plugin::{name}'\n")
    code = (
        'from mmengine.config import Config\n'
        'from mmdet.apis import init_detector\n'
        "model = init_detector(Config.fromfile('user.py'), device='cpu')\n"
        'import cnv2_plugin; print(type(model.neck).__name__, cnv2_plugin.__version__)'
    )
    assert call([python, '-c', code], tmp_path).splitlines()[-1] == f'SFRFPN {__version__}'

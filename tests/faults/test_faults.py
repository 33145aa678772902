"""NaN and Inf before a stage, masks that disagree with their stage, and writes that fail half way."""

import resource
import signal

import pytest
import timm
import torch

import cnv2_plugin.toolkits  # noqa: F401  (registers the models)
from cnv2_plugin.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from cnv2_plugin.deploy import VerificationError, condense, export_onnx, verify
from cnv2_plugin.sparsify import StagedSparsifier
from tests.faults.test_kill import ARCH
from tests.helpers import finish_pruning, randomize_norms


def small(**options):
    return timm.create_model('condensenetv2', arch=ARCH, num_classes=3, **options)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['stages.0.layers.0.conv_1', 'stages.1.layers.0.sfr'])
def test_a_stage_meets_no_nan(name, value):
    model = small()
    sparsifier = StagedSparsifier(model, 8)
    for _ in range(2):
        sparsifier.step()
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.conv.weight[1, 1] = value
    before = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.endswith(('mask', 'stage'))}
    with pytest.raises(ValueError, match=name.replace('.', r'\.')):
        for _ in range(6):
            sparsifier.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items() if key in before)
    with torch.no_grad():
        layer.conv.weight[1, 1] = 0.1
    sparsifier.set_progress(1.0)
    assert sparsifier.finished


def test_nan_in_a_pruned_place_counts_too():
    model = small()
    layer = model.stages[0].layers[0].conv_1
    layer.prune_to(1)
    with torch.no_grad():
        layer.conv.weight[~layer.mask] = float('nan')
    with pytest.raises(ValueError, match='NaN'):
        layer.prune_to(2)


def drop_one(mask):
    mask[mask.nonzero()[0]] = False


DISAGREEMENTS = {
    'stage ahead of the mask': lambda s, k: s.update({f'{k}.stage': torch.tensor(2)}),
    'stage beyond the last': lambda s, k: s.update({f'{k}.stage': torch.tensor(9)}),
    'negative stage': lambda s, k: s.update({f'{k}.stage': torch.tensor(-1)}),
    'one weight of a unit': lambda s, k: drop_one(s[f'{k}.mask'].view(-1)),
    'an empty mask': lambda s, k: s[f'{k}.mask'].fill_(False),
    'a full mask': lambda s, k: s[f'{k}.mask'].fill_(True),
}  # fmt: skip


@pytest.mark.parametrize('name', DISAGREEMENTS)
@pytest.mark.parametrize('layer', ['stages.0.layers.0.conv_1', 'stages.1.layers.0.conv_1'])
def test_masks_cannot_disagree_with_their_stage(name, layer, tmp_path):
    model = small()
    model.get_submodule(layer).prune_to(1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    DISAGREEMENTS[name](state, layer)
    save_checkpoint(state, tmp_path / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'x.pth')['state_dict']
    with pytest.raises(RuntimeError, match=layer.replace('.', r'\.')):
        small().load_state_dict(loaded)


@pytest.mark.parametrize('strict', [True, False])
def test_stages_without_masks_are_refused(strict):
    model = finish_pruning(small())
    state = {key: value for key, value in model.state_dict().items() if not key.endswith('mask')}
    with pytest.raises(RuntimeError, match=r'stages\.0\.layers\.0\.conv_1.*lacks.*mask'):
        small().load_state_dict(state, strict=strict)
    weights = {key: value for key, value in state.items() if not key.endswith('stage')}
    assert not small().load_state_dict(weights, strict=False).unexpected_keys


def test_a_full_disk_keeps_the_old_file(tmp_path):
    """A limit on the size of files makes the system's own write fail in the middle."""
    path = tmp_path / 'x.pth'
    save_checkpoint({'w': torch.zeros(4)}, path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for target in (path, tmp_path / 'new.safetensors'):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises((OSError, RuntimeError)):
                save_checkpoint({'w': torch.zeros(100_000)}, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['x.pth']


@pytest.mark.needs('onnx', 'onnxruntime')
def test_a_failed_export_keeps_the_old_file(tmp_path):
    path = tmp_path / 'x.onnx'
    path.write_bytes(b'old')
    model = finish_pruning(randomize_norms(small())).eval()
    with pytest.raises(VerificationError, match='nothing was written'):
        export_onnx(condense(model), path, (3, 16, 16), batch=1, optimize=False, tolerance=0)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_metadata_of_an_onnx_file_is_never_run(tmp_path):
    onnx = pytest.importorskip('onnx')
    model = finish_pruning(randomize_norms(small())).eval()
    path = tmp_path / 'x.onnx'
    export_onnx(condense(model), path, (3, 16, 16), batch=1, optimize=False)
    proto = onnx.load(path)
    payload = f'__import__("os").mkdir({str(tmp_path / "executed")!r})'
    onnx.helper.set_model_props(proto, {key: payload for key in ('arch', 'model_kwargs', 'mean', 'num_classes')})
    proto.doc_string = payload
    onnx.save(proto, path)
    assert verify(model, path, (3, 16, 16), 1).max_rel < 1e-5
    assert not (tmp_path / 'executed').exists()


def test_a_damaged_member_is_noticed(tmp_path):
    path = tmp_path / 'x.pth'
    save_checkpoint({'w': torch.arange(3000.0)}, path)
    content = bytearray(path.read_bytes())
    middle = content.find(torch.arange(100.0, 110.0).numpy().tobytes())
    content[middle] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='damaged'):
        load_checkpoint(path)

"""ONNX files: names, batches, metadata, operators, and nothing half-written."""

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import count_cost
from cnv2_plugin.deploy import VerificationError, condense, export_onnx, verify
from cnv2_plugin.deploy.runtimes import export_runtime
from cnv2_plugin.sparsify import to_learned_groups
from tests.helpers import finish_pruning, installed, random_arch, randomize_norms

pytestmark = pytest.mark.smoke

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')


def finished(seed=201, **kwargs):
    """Of three layers by default: one and two in a block, with gates and hard swishes."""
    model = timm.create_model('condensenetv2', arch=random_arch(seed), num_classes=6, **kwargs)
    return finish_pruning(randomize_norms(model, seed)).eval()


@pytest.mark.slow
@pytest.mark.parametrize('optimize', [False, True])
def test_dynamic_batch(tmp_path, optimize):
    model = finished()
    report = export_onnx(condense(model), tmp_path / 'x.onnx', (3, 24, 24), optimize=optimize)
    session = onnxruntime.InferenceSession(report.path)
    assert [i.name for i in session.get_inputs()] == ['input'] and [o.name for o in session.get_outputs()] == ['logits']
    for batch in (1, 3):
        x = torch.randn(batch, 3, 24, 24)
        (logits,) = session.run(None, {'input': x.numpy()})
        assert (torch.from_numpy(logits) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()
    assert report.size == report.path.stat().st_size
    assert {node.domain for node in onnx.load(report.path).graph.node} == {''}


def test_fixed_batch_and_training_form(tmp_path):
    report = export_onnx(finished(), tmp_path / 'x.onnx', (3, 24, 24), batch=2, optimize=False)
    session = onnxruntime.InferenceSession(report.path)
    assert session.get_inputs()[0].shape == [2, 3, 24, 24]


def test_metadata(tmp_path):
    export_onnx(condense(finished()), tmp_path / 'x.onnx', (3, 24, 24), metadata=dict(arch='mine'))
    found = {p.key: p.value for p in onnx.load(tmp_path / 'x.onnx').metadata_props}
    assert found['arch'] == 'mine' and found['num_classes'] == '6'
    assert found['mean'].startswith('[0.485')


def test_several_outputs(tmp_path):
    model = timm.create_model('condensenetv2', arch=random_arch(4), features_only=True).eval()
    finish_pruning(randomize_norms(model))
    export_onnx(condense(model), tmp_path / 'x.onnx', (3, 32, 32), optimize=False)
    names = [o.name for o in onnxruntime.InferenceSession(tmp_path / 'x.onnx').get_outputs()]
    assert names == [f'output_{i}' for i in range(len(names))] and len(names) >= 2


def test_no_notes_of_the_machine_are_left_in_the_file(tmp_path):
    export_onnx(condense(finished()), tmp_path / 'x.onnx', (3, 24, 24))
    assert b'site-packages' not in (tmp_path / 'x.onnx').read_bytes()


def exporting():
    """``torch.compiler`` tells it since PyTorch 2.6."""
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()


def test_disagreement_leaves_the_old_file(tmp_path):
    class Fickle(nn.Module):
        def forward(self, x):
            return x if torch.onnx.is_in_onnx_export() or exporting() else x + 1

    path = tmp_path / 'x.onnx'
    path.write_bytes(b'old')
    with pytest.raises(VerificationError, match='nothing was written'):
        export_onnx(Fickle(), path, (3, 8, 8), optimize=False)
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(batch=0), 'batch is 0'),
        (dict(batch='many'), "batch is 'many'"),
        (dict(input_size=(3, 0, 8)), 'input_size'),
    ],
)
def test_wrong_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(nn.Identity(), tmp_path / 'x.onnx', **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['condensenetv2_a', 'condensenetv2_b', 'condensenetv2_c'])
def test_plain_file_of_published_variants_is_small(name, tmp_path):
    """The smallest goes through ``torch.export``, the others through TorchScript, which is faster."""
    model = finish_pruning(randomize_norms(timm.create_model(name))).eval()
    condensed = condense(model)
    options = {} if name == 'condensenetv2_a' else dict(opset=17)
    report = export_onnx(condensed, tmp_path / 'x.onnx', optimize=False, **options)
    assert report.size <= 1.1 * 4 * sum(p.numel() for p in condensed.parameters())
    assert report.verification.max_rel <= 1e-5 and report.verification.argmax_agreement == 1


class Mean(nn.Module):
    """The mean over height and width, which keeps them as 1 x 1 or drops them."""

    def __init__(self, keepdim):
        super().__init__()
        self.conv, self.keepdim = nn.Conv2d(3, 5, 1), keepdim

    def forward(self, x):
        return self.conv(x).mean((2, 3), keepdim=self.keepdim)


@pytest.mark.parametrize('keepdim', [False, True])
def test_a_mean_is_pooled_globally_only_where_it_keeps_its_dimensions(keepdim, tmp_path):
    report = export_onnx(Mean(keepdim).eval(), tmp_path / 'x.onnx', (3, 4, 6))
    pooled = 'GlobalAveragePool' in report.operators
    assert pooled == keepdim or installed('torch<2.6') and not pooled  # TorchScript gives the axes as an input
    session = onnxruntime.InferenceSession(report.path)
    (found,) = session.run(None, {'input': torch.ones(2, 3, 4, 6).numpy()})
    assert found.shape == ((2, 5, 1, 1) if keepdim else (2, 5))


@pytest.mark.slow
@pytest.mark.parametrize('opset', [17, 18])
@pytest.mark.parametrize('form', ['masked', 'condensed', 'lowered', 'surgery'])
def test_opset(tmp_path, form, opset):
    if form == 'surgery':
        model = timm.create_model('mobilenetv3_small_050', num_classes=3)
        to_learned_groups(model, min_channels=16, input_size=(3, 64, 64))
        model = finish_pruning(randomize_norms(model)).eval()
    else:
        model = finished()
        model = condense(model) if form == 'condensed' else model
    options = dict(optimize=form in ('lowered', 'surgery'), opset=opset)
    report = export_onnx(model, tmp_path / 'x.onnx', (3, 64, 64), **options)
    assert report.opset == opset == onnx.load(report.path).opset_import[0].version
    assert report.verification.max_rel <= 1e-5
    x = torch.randn(3, 3, 64, 64)
    (logits,) = onnxruntime.InferenceSession(report.path).run(None, {'input': x.numpy()})
    assert (torch.from_numpy(logits) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()


@pytest.mark.parametrize('opset', [16, 21])
def test_opsets_that_are_not_written(tmp_path, opset):
    with pytest.raises(ValueError, match=f'opset is {opset}.*17'):
        export_onnx(finished(), tmp_path / 'x.onnx', (3, 24, 24), opset=opset)


@pytest.mark.parametrize('kind', ['onnx', 'pt2'])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_models_of_other_types_are_asked_to_be_float(tmp_path, dtype, kind):
    model = finished().to(dtype)
    with pytest.raises(ValueError, match=rf'{dtype}.*model\.float\(\)'):
        if kind == 'onnx':
            export_onnx(model, tmp_path / 'x.onnx', (3, 24, 24))
        else:
            export_runtime(model, 'torch_export', tmp_path / 'x.pt2', (3, 24, 24))
    assert verify(model, condense(model), (3, 24, 24), 1).num_inputs >= 1
    assert count_cost(model, (3, 24, 24)) == count_cost(finished(), (3, 24, 24))


def test_weights_that_are_no_numbers_are_named(tmp_path):
    model = finished()
    with torch.no_grad():
        model.classifier.weight[1, 2] = float('nan')
    with pytest.raises(RuntimeError, match=r'classifier\.weight.*NaN'):
        export_onnx(model, tmp_path / 'x.onnx', (3, 24, 24))
    assert not list(tmp_path.iterdir())

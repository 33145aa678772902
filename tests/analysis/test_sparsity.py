"""The sparsity report against counting by hand."""

import csv

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import plot_sparsity, sparsity_report
from cnv2_plugin.analysis.sparsity import totals, write_csv
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from tests.helpers import finish_pruning, random_arch


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(1)
    return finish_pruning(timm.create_model('condensenetv2', arch=random_arch(2), num_classes=4)).eval()


def test_layers_are_counted_from_the_masks(model):
    report = sparsity_report(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, GroupSparseConv2d)}
    assert [layer.name for layer in report.layers] == list(layers)
    for told in report.layers:
        layer = layers[told.name]
        mask = layer.mask[..., 0, 0]
        columns = mask if told.kind == 'lgc' else mask.t()
        chosen = [len({i % layer.groups for i in column.nonzero().flatten().tolist()}) for column in columns.t()]
        assert told.unused == chosen.count(0) and told.features == len(chosen)
        assert told.multiplicity == tuple(chosen.count(i) for i in range(layer.groups + 1))
        assert told.kept == pytest.approx(mask.float().mean().item())


def test_sources_are_counted_over_later_layers(model):
    report = sparsity_report(model)
    dense = [layer for stage in model.stages for layer in stage.layers]
    width = dense[-1].conv_1.in_channels + dense[-1].conv_2.out_channels
    reads, updates = torch.zeros(width), torch.zeros(width)
    for layer in dense:
        reads[: layer.conv_1.in_channels] += layer.conv_1.mask[..., 0, 0].any(0)
        updates[: layer.sfr.out_channels] += layer.sfr.mask[..., 0, 0].any(1)
    first = 0
    for i, source in enumerate(report.sources):
        own = slice(first, first + source.features)
        first += source.features
        assert source.readers == source.updaters == len(dense) - i
        assert source.never_read == int((reads[own] == 0).sum())
        assert source.reads == pytest.approx(reads[own].mean().item())
        assert source.reactivations == tuple(int((updates[own] == n).sum()) for n in range(source.updaters + 1))
    assert totals(report.sources)['never_read'][1] == width - report.sources[-1].features


def test_the_condensed_form_has_the_same_report(model):
    assert sparsity_report(condense(model)) == sparsity_report(model)


@pytest.mark.needs('matplotlib')
def test_a_foreign_model_has_layers_but_no_sources(tmp_path):
    from PIL import Image

    foreign = nn.Sequential(GroupSparseConv2d(8, 8, 2, 4), nn.ReLU())
    report = sparsity_report(foreign)
    assert report.sources == () and report.kept == 1 and report.layers[0].stage == 0
    plot_sparsity(report, tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as picture:
        assert len(picture.convert('RGB').getcolors(1 << 24)) > 3, 'curves, text and paper differ'
    with pytest.raises(ValueError, match='no group-sparse layer'):
        sparsity_report(nn.Linear(2, 2))


@pytest.mark.needs('matplotlib')
def test_picture_and_csv(model, tmp_path):
    report = sparsity_report(model)
    plot_sparsity(report, tmp_path / 'x.svg', 'a <title>')
    write_csv(report, tmp_path / 'x.csv')
    rows = list(csv.DictReader((tmp_path / 'x.csv').open()))
    assert [row['name'] for row in rows] == [layer.name for layer in report.layers]
    assert rows[0]['multiplicity'] == ' '.join(map(str, report.layers[0].multiplicity))

"""Connection maps against hand-made networks, in every form of a model."""

import csv
import xml.etree.ElementTree as ElementTree

import pytest
import timm
import torch
from torch import nn

from cnv2_plugin.analysis import connection_map, plot_maps
from cnv2_plugin.analysis.heatmap import write_csv
from cnv2_plugin.analysis.heatmap_trace import trace, unit_use
from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from tests.helpers import finish_pruning, random_arch, randomize_norms


def small(seed=3, **options):
    torch.manual_seed(seed)
    return finish_pruning(randomize_norms(timm.create_model('condensenetv2', arch=random_arch(seed), **options))).eval()


def slow_row(weight, mask, features_by_source):
    """Strength and share by plain loops over a weight ``(O, I)`` whose columns are the features."""
    strength, share = [], []
    for features in features_by_source:
        values = [abs(float(w)) * bool(m) for i in features for w, m in zip(weight[:, i], mask[:, i])]
        strength.append(sum(values) / len(values))
        share.append(sum(bool(mask[:, i].any()) for i in features) / len(features))
    return strength, share


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_maps_are_what_slow_loops_say(seed):
    model = small(seed)
    reads, updates = connection_map(model, 'lgc'), connection_map(model, 'sfr')
    row, ends = 0, [model.stem.out_channels]
    for stage in model.stages:
        for layer in stage.layers:
            sources = [range(a, b) for a, b in zip([0, *ends], ends)]
            for found, part, flip in ((reads, layer.conv_1, False), (updates, layer.sfr, True)):
                weight, mask = part.conv.weight.detach()[..., 0, 0], part.mask[..., 0, 0]
                strength, share = slow_row(weight.t() if flip else weight, mask.t() if flip else mask, sources)
                assert torch.allclose(found.strength[row, : len(ends)], torch.tensor(strength).double(), rtol=1e-5)
                assert torch.allclose(found.share[row, : len(ends)], torch.tensor(share).double())
                assert found.strength[row, len(ends) :].isnan().all()
            ends.append(ends[-1] + layer.conv_2.out_channels)
            row += 1
    assert updates.targets[0] == '1.1' and reads.sources[0].label == 'stem'
    assert [s.features for s in reads.sources] == [b - a for a, b in zip([0, *ends], ends)]
    assert torch.equal(reads.normalised.nan_to_num(0).amax(1), torch.ones(len(reads.targets)).double())


@pytest.mark.parametrize('name', ['condensenetv2', 'condensenet', 'sfr_shufflenetv2_x0_5'])
def test_condensed_and_packed_forms_have_the_same_maps(name):
    options = {} if 'shuffle' in name else dict(arch=random_arch(5) if name.endswith('v2') else v1_arch())
    torch.manual_seed(0)
    model = finish_pruning(timm.create_model(name, num_classes=10, **options)).eval()
    kinds = {use.kind for use in trace(model).uses}
    condensed = condense(model)
    packed = timm.create_model(name, num_classes=10, **options)
    packed.load_state_dict(model.state_dict())
    for layer in packed.sparse_layers():
        layer.switch_to_packed()
    for kind in kinds:
        expected = connection_map(model, kind)
        for other in (condensed, packed):
            found = connection_map(other, kind)
            assert torch.allclose(found.strength, expected.strength, equal_nan=True)
            assert torch.equal(found.share.nan_to_num(-1), expected.share.nan_to_num(-1))


def v1_arch():
    arch = random_arch(5)
    return {**{k: v for k, v in arch.items() if k not in ('groups_sfr', 'hswish_from', 'se_from', 'head_width')}}


def test_unit_use_counts_groups():
    layer = SparseFeatureReactivation(4, 3, groups=2, factor=3)
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor([[9.0, 1, 9, 1], [1, 9, 1, 9], [2, 2, 2, 2]])[..., None, None])
    layer.prune_to(2)
    strength, groups = unit_use(layer)
    assert groups.tolist() == [1, 1, 0] and strength.tolist() == [4.5, 4.5, 0]
    layer.switch_to_deploy()
    assert [x.tolist() for x in unit_use(layer)] == [[4.5, 4.5, 0], [1, 1, 0]]
    assert unit_use(LearnedGroupConv(3, 4, 2, 1))[1].tolist() == [2, 2, 2]


def test_a_shufflenet_map_follows_the_shuffles():
    model = timm.create_model('sfr_shufflenetv2_x0_5')
    sources = trace(model).sources
    uses = {use.label: use for use in trace(model).uses}
    assert [s.label for s in sources[:5]] == ['1.1', '1.2', '1.3', '1.4', '2.1']
    made = {label: [u for u in range(len(trace(model).source_of))] for label in ('1.1',)}
    assert set(uses['1.2'].feature.tolist()) <= set(made['1.1'])
    x = torch.arange(48.0).view(1, 48, 1, 1)
    first = model.stages[0].layers[0].shuffle(x).flatten()
    assert uses['1.2'].feature.tolist() == first[:24].long().tolist()
    found = connection_map(model, 'sfr')
    assert found.targets == tuple(f'{i + 1}.{j + 1}' for i, n in enumerate((4, 8, 4)) for j in range(1, n))
    assert found.strength[found.targets.index('2.2')].isnan().sum() == len(sources) - 1


def test_the_head_row_is_the_first_linear_layer():
    model = small(3, num_classes=7)
    last = connection_map(model, 'lgc')
    expected = (model.conv_head if hasattr(model.conv_head, 'weight') else model.classifier).weight.abs().flatten(1)
    assert last.targets[-1] == 'head'
    assert last.strength[-1, 0].item() == pytest.approx(expected[:, : model.stem.out_channels].mean().item())
    assert connection_map(small(3, num_classes=0), 'sfr').targets[-1] != 'head'


@pytest.mark.needs('matplotlib')
@pytest.mark.parametrize('suffix', ['png', 'svg'])
def test_pictures_and_csv(tmp_path, suffix):
    model = small()
    maps = [connection_map(model, 'sfr', 'a'), connection_map(condense(model), 'sfr', 'b & c')]
    plot_maps(maps, tmp_path / f'x.{suffix}')
    write_csv(maps, tmp_path / 'x.csv')
    content = (tmp_path / f'x.{suffix}').read_bytes()
    assert content.startswith(b'\x89PNG') if suffix == 'png' else ElementTree.fromstring(content).tag.endswith('svg')
    rows = list(csv.DictReader((tmp_path / 'x.csv').open()))
    assert len(rows) == 2 * int((~maps[0].strength.isnan()).sum())
    assert float(rows[0]['strength']) == pytest.approx(maps[0].strength[0, 0].item(), rel=1e-5)
    assert {row['model'] for row in rows} == {'a', 'b & c'}


@pytest.mark.needs('matplotlib')
def test_the_same_map_gives_the_same_svg(tmp_path):
    m = connection_map(small(), 'lgc')
    for name in ('a', 'b'):
        plot_maps([m], tmp_path / f'{name}.svg')
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_bad_requests(tmp_path):
    model = small()
    with pytest.raises(ValueError, match="'lgc' or 'sfr'"):
        connection_map(model, 'se')
    with pytest.raises(ValueError, match='no CondenseNet'):
        connection_map(nn.Linear(2, 2), 'lgc')
    with pytest.raises(ValueError, match='has no LGC map'):
        connection_map(timm.create_model('sfr_shufflenetv2_x0_5'), 'lgc')
    with pytest.raises(ValueError, match='all of one kind'):
        plot_maps([connection_map(model, kind) for kind in ('lgc', 'sfr')], tmp_path / 'x.png')
    with pytest.raises(ValueError, match='.png, .svg, .pdf'):
        plot_maps([connection_map(model, 'lgc')], tmp_path / 'x.exe')
    assert list(tmp_path.iterdir()) == []

"""A new family is a shape, a trunk, a graph builder and registrations; then every form of it works."""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

from cnv2_plugin import archs
from cnv2_plugin.deploy import condense, export_onnx, lower, lowered_forms
from cnv2_plugin.graph.builder import BUILDERS, STAGES, add_module, builds
from cnv2_plugin.graph.ops import Add
from cnv2_plugin.layers import LearnedGroupConv, SparseFeatureReactivation
from cnv2_plugin.models.base import SparseModelMixin, init_weights
from tests.helpers import finish_pruning, randomize_norms, relative_difference

# --- the family ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ResidualArch:
    """Widths and layers of the stages, each of which halves the size."""

    widths: tuple = (16, 32)
    layers: tuple = (1, 2)
    groups: int = 4
    factor: int = 4

    @property
    def num_stages(self):
        return len(self.widths)

    def smallest_input(self, num_stages):
        return 2 ** (num_stages + 1)


class ResidualLayer(nn.Module):
    """Makes features from chosen ones, and updates chosen ones by them."""

    def __init__(self, width, arch, **options):
        super().__init__()
        self.read = LearnedGroupConv(width, width, arch.groups, arch.factor, **options)
        self.make = nn.Conv2d(width, width // 2, 3, padding=1, groups=arch.groups, bias=False)
        self.update = SparseFeatureReactivation(width // 2, width, arch.groups, arch.factor, **options)

    def forward(self, x):
        return x + self.update(self.make(self.read(x)))


class ResidualStage(nn.Module):
    def __init__(self, in_channels, width, layers, arch, **options):
        super().__init__()
        self.pool = nn.AvgPool2d(2, 2)
        self.widen = LearnedGroupConv(in_channels, width, arch.groups, arch.factor, **options)
        self.layers = nn.ModuleList(ResidualLayer(width, arch, **options) for _ in range(layers))

    def forward(self, x):
        x = self.widen(self.pool(x))
        for layer in self.layers:
            x = layer(x)
        return x


class ResidualTrunk(SparseModelMixin, nn.Module):
    final_attribute = 'norm'

    def __init__(self, arch, in_chans=3, deploy=False, **kwargs):
        super().__init__(**kwargs)
        self.arch, self.deploy = arch, deploy
        channels = (arch.widths[0], *arch.widths)
        self.stem = nn.Conv2d(in_chans, channels[0], 3, 2, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                ResidualStage(channels[i], channels[i + 1], arch.layers[i], arch, deploy=deploy)
                for i in range(arch.num_stages)
            )
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(channels[-1]), nn.ReLU())
        self.stage_channels, self.num_features = list(arch.widths), channels[-1]
        self.stage_strides = [4 * 2**i for i in range(arch.num_stages)]
        self.smallest_input = arch.smallest_input(arch.num_stages)
        self.apply(init_weights)

    def forward_final(self, x):
        return self.norm(x)


def add_stage(graph, stage, x, name):
    x = add_module(graph, stage.widen, add_module(graph, stage.pool, x, ''), f'{name}widen')
    for i, layer in enumerate(stage.layers):
        new = add_module(graph, layer.read, x, f'{name}layers.{i}.read')
        new = add_module(graph, layer.make, new, f'{name}layers.{i}.make')
        x = graph.add(Add(), add_module(graph, layer.update, new, f'{name}layers.{i}.update'), x)
    return x


def register():
    """The timm class, its entry points, and the graph builder."""
    from cnv2_plugin.toolkits.timm.entrypoints import register_family
    from cnv2_plugin.toolkits.timm.head import TimmModel

    class Residual(TimmModel, ResidualTrunk):
        first_conv, final_is_norm = 'stem', True

    row = dataclasses.replace(
        archs.VARIANTS['condensenetv2_a'], name='residual_s', family='Residual', arch=ResidualArch()
    )
    archs.VARIANTS['residual_s'] = row
    register_family(globals(), Residual, 'Residual', custom='residual', like='residual_s')
    builds(ResidualStage, stage=True)(add_stage)


# --- what it gets for that -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def model():
    register()
    torch.manual_seed(0)
    yield finish_pruning(randomize_norms(timm.create_model('residual_s', num_classes=5))).eval()
    del archs.VARIANTS['residual_s'], BUILDERS[ResidualStage]
    STAGES.remove(ResidualStage)


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def difference(model, other, images):
    with torch.no_grad():
        return relative_difference(other(images), model(images))


def test_condensed_and_loaded_strictly(model, images):
    condensed = condense(model)
    assert difference(model, condensed, images) <= 1e-5
    built = timm.create_model('residual_s', num_classes=5, deploy=True).eval()
    built.load_state_dict(condensed.state_dict())
    assert difference(model, built, images) <= 1e-5


def test_lowered(model, images):
    lowered = lower(model, (3, 32, 32))
    assert difference(model, lowered, images) <= 1e-5
    assert len(lowered_forms(lowered)) == 2 + 3 * 3


@pytest.mark.needs('kernels')
def test_native(model, images):
    native = lower(model, (3, 32, 32), 'native')
    assert difference(model, native, images) <= 1e-5
    assert 'native' in lowered_forms(native).values()


@pytest.mark.needs('onnx', 'onnxruntime')
def test_onnx(model, images, tmp_path):
    import onnxruntime

    export_onnx(model, tmp_path / 'x.onnx', (3, 32, 32))
    session = onnxruntime.InferenceSession(tmp_path / 'x.onnx')
    with torch.no_grad():
        expected = model(images)
    found = torch.from_numpy(np.asarray(session.run(None, {'input': images.numpy()})[0]))
    assert relative_difference(found, expected) <= 1e-5

"""One set of weights in timm, mmpretrain and mmdet: equal logits, and keys that move both ways."""

import pytest
import timm
import torch
from mmengine.registry import MODELS, DefaultScope

from cnv2_plugin.archs import VARIANTS
from cnv2_plugin.cli import main
from cnv2_plugin.deploy import condense
from cnv2_plugin.toolkits.key_map import convert_keys
from cnv2_plugin.toolkits.openmmlab import CondenseNetV2
from tests.helpers import finish_pruning, randomize_norms, relative_difference

from .stand_ins import ARCH, CLASSES, classifier

LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ('condensenetv2_b', 'condensenetv2_c')]
SMALL = ['condensenetv2_a', 'condensenet_74_g8', 'condensenetv2_110_cifar', 'sfr_shufflenetv2_x0_5']


def mmpretrain_config(name: str, deploy: bool = False) -> dict:
    """The ImageClassifier that mirrors a timm model."""
    variant = VARIANTS[name]
    key = 'widen_factor' if 'Shuffle' in variant.family else 'arch'
    backbone = {'type': variant.family, key: variant.key, 'deploy': deploy}
    with torch.device('meta'):
        channels = MODELS.build(dict(backbone)).num_features
    width = getattr(variant.arch, 'head_width', None)
    if width is None:
        neck = dict(type='GlobalAveragePooling')
        head = dict(type='LinearClsHead', num_classes=variant.num_classes, in_channels=channels)
    else:
        neck = dict(type='SEGlobalPooling', channels=channels)
        head = dict(
            type='StackedLinearClsHead', num_classes=variant.num_classes, in_channels=channels, mid_channels=[width],
            act_cfg=dict(type='HSwish'),
        )  # fmt: skip
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


def build(cfg: dict):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg).eval()


def logits(model, x):
    return model.head(model.extract_feat(x))


@pytest.mark.parametrize('name', [*SMALL, *LARGE])
def test_equal_logits_training_and_deployed(name):
    torch.manual_seed(0)
    theirs = finish_pruning(randomize_norms(timm.create_model(name))).eval()
    x = torch.randn(2, 3, 64, 64)
    for deploy in (False, True):
        if deploy:
            theirs = condense(theirs)
        ours = build(mmpretrain_config(name, deploy))
        renamed, dropped = convert_keys(theirs.state_dict(), 'mmpretrain')
        ours.load_state_dict(renamed)
        assert not dropped
        with torch.no_grad():
            expected = theirs(x)
            assert relative_difference(logits(ours, x), expected) < 1e-6
        back, dropped = convert_keys(ours.state_dict(), 'timm')
        assert not dropped and all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())
        assert back.keys() == theirs.state_dict().keys()


def test_pretrained_loads_a_timm_checkpoint_and_one_with_prefix(tmp_path):
    source = finish_pruning(randomize_norms(timm.create_model('condensenetv2', arch=ARCH, num_classes=CLASSES)))
    torch.save(source.state_dict(), tmp_path / 'timm.pth')
    torch.save(dict(state_dict=convert_keys(source.state_dict(), 'mmpretrain')[0]), tmp_path / 'mmpretrain.pth')
    for file, prefix in (('timm.pth', None), ('mmpretrain.pth', 'backbone.')):
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / file), prefix=prefix)
        backbone = CondenseNetV2(ARCH, init_cfg=init_cfg)
        backbone.init_weights()
        own = backbone.state_dict()
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in own.items())


def test_pretrained_deployed_weights_build_with_deploy(tmp_path):
    source = finish_pruning(randomize_norms(timm.create_model('condensenetv2', arch=ARCH)))
    source.switch_to_deploy()
    torch.save(source.state_dict(), tmp_path / 'deployed.pth')
    backbone = CondenseNetV2(
        ARCH, deploy=True, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'deployed.pth'))
    )
    backbone.init_weights()
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in backbone.state_dict().items())


def test_command_moves_an_mmpretrain_checkpoint_to_timm_and_back(tmp_path, capsys):
    model = build(classifier())
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1)), tmp_path / 'mm.pth')
    assert main(['convert-keys', str(tmp_path / 'mm.pth'), str(tmp_path / 'timm.pth'), '--to', 'timm']) == 0
    theirs = timm.create_model('condensenetv2', arch=ARCH, num_classes=CLASSES).eval()
    theirs.load_state_dict(torch.load(tmp_path / 'timm.pth')['state_dict'])
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_difference(theirs(x), logits(model, x)) < 1e-6
    assert (
        main(['convert-keys', str(tmp_path / 'timm.pth'), str(tmp_path / 'back.safetensors'), '--to', 'mmpretrain'])
        == 0
    )
    assert main(['convert-keys', str(tmp_path / 'mm.pth'), str(tmp_path / 'trunk.pth'), '--to', 'backbone']) == 0
    trunk = torch.load(tmp_path / 'trunk.pth')['state_dict']
    CondenseNetV2(ARCH).load_state_dict(trunk)
    assert 'Left out' in capsys.readouterr().out


def test_unknown_keys_and_targets_are_named(tmp_path, capsys):
    torch.save({'features.init_conv.weight': torch.zeros(1)}, tmp_path / 'official.pth')
    assert main(['convert-keys', str(tmp_path / 'official.pth'), str(tmp_path / 'x.pth'), '--to', 'timm']) == 1
    assert 'import-official' in capsys.readouterr().err and not (tmp_path / 'x.pth').exists()
    with pytest.raises(ValueError, match='mmpretrain'):
        convert_keys({'stem.weight': torch.zeros(1)}, 'mmseg')

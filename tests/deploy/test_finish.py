"""Finishing a network whose training stopped early."""

import pytest
import timm
import torch

import cnv2_plugin  # noqa: F401  (registers the models with timm)
from cnv2_plugin.deploy.finish import finish

TINY = dict(layers=(1, 2), growth=(8, 16), groups_1x1=4, groups_3x3=4, groups_sfr=2, condense_factor=4, sparse_factor=2)


def test_an_error_while_statistics_are_measured_leaves_every_module_in_evaluation_mode():
    model = timm.create_model('condensenetv2', arch=TINY, num_classes=5).eval()

    def view(given):
        def run(images):
            if any(module.training for module in given.modules()):
                raise RuntimeError('in the middle')
            return given(images)

        return run

    with pytest.raises(RuntimeError, match='in the middle'):
        finish(model, view, (3, 32, 32), [torch.randn(2, 3, 32, 32)])
    assert not any(module.training for module in model.modules())

"""Hugging Face: the timm wrapper and backbone on our names, and the callback inside ``Trainer``."""

import pytest
import timm
import torch
from torch.utils.data import Dataset

from cnv2_plugin.deploy import condense
from cnv2_plugin.layers import GroupSparseConv2d
from cnv2_plugin.toolkits.timm import save_for_hub
from tests.helpers import finish_pruning, randomize_norms
from tests.scripts.test_run import ARCH

transformers = pytest.importorskip('transformers')
pytestmark = pytest.mark.smoke

from cnv2_plugin.toolkits.transformers import StagedSparsificationCallback  # noqa: E402


def stages(model):
    return {int(m.stage) for m in model.modules() if isinstance(m, GroupSparseConv2d)}


@pytest.mark.parametrize('deployed', [False, True])
def test_auto_model_reads_what_is_saved_for_the_hub(deployed, tmp_path):
    model = finish_pruning(randomize_norms(timm.create_model('condensenetv2', arch=ARCH, num_classes=5))).eval()
    model = condense(model) if deployed else model
    save_for_hub(model, tmp_path)
    read = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(read(x).logits, model(x), atol=1e-5)
    assert read.timm_model.deploy == deployed
    assert all(torch.equal(a, b) for a, b in zip(read.timm_model.buffers(), model.buffers()))


def test_the_wrapper_saves_and_loads_its_own_folder(tmp_path):
    config = transformers.TimmWrapperConfig(architecture='condensenet_50_cifar', num_labels=4)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    finish_pruning(randomize_norms(model))
    model.save_pretrained(tmp_path)
    read = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(read(x).logits, model(x).logits, atol=1e-5)
    assert stages(read) == stages(model) == {3}


def test_auto_backbone_gives_our_stages():
    config = transformers.TimmBackboneConfig(
        backbone='condensenetv2_a', out_indices=(1, 3), use_pretrained_backbone=False
    )
    backbone = transformers.AutoBackbone.from_config(config).eval()
    maps = backbone(torch.randn(1, 3, 64, 64)).feature_maps
    info = timm.create_model('condensenetv2_a', features_only=True, out_indices=(1, 3)).feature_info
    assert [m.shape[1] for m in maps] == info.channels() == list(backbone.channels)
    assert [64 // m.shape[2] for m in maps] == info.reduction()


class Images(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return dict(pixel_values=torch.randn(3, 8, 8, generator=generator), labels=i % 3)


def train(folder, resume=None, stop_after=None, seed=0):
    pytest.importorskip('accelerate')
    torch.manual_seed(seed)
    config = transformers.TimmWrapperConfig(architecture='condensenetv2', model_args=dict(arch=ARCH), num_labels=3)
    model = transformers.AutoModelForImageClassification.from_config(config)

    class Stop(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= stop_after

    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True,
        save_strategy='epoch', logging_steps=4, report_to='none', disable_tqdm=True, learning_rate=1e-2, optim='sgd',
    )  # fmt: skip
    callback = StagedSparsificationCallback(sparse_fraction=0.6, group_lasso=1e-2)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=Images(), callbacks=[callback, *([Stop()] if stop_after else [])]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, callback.sparsifier, trainer


def test_the_trainer_resumes_where_it_was(tmp_path):
    whole, sparsifier, trainer = train(tmp_path / 'whole')
    assert sparsifier.steps_done == sparsifier.total_steps == 12 and stages(whole) == {2, 3}
    kept = [entry['kept_fraction'] for entry in trainer.state.log_history if 'kept_fraction' in entry]
    assert kept[-1] == pytest.approx(sparsifier.sparsity()['total']) and kept[0] > kept[-1]
    part, _, _ = train(tmp_path / 'part', stop_after=1)
    assert max(stages(part)) in (1, 2)
    rest, sparsifier, _ = train(tmp_path / 'part', resume=True, seed=1)
    assert sparsifier.steps_done == 12
    for key, value in whole.state_dict().items():
        assert torch.allclose(value, rest.state_dict()[key], atol=1e-5), key

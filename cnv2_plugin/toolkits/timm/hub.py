"""A model as the folder that timm and the Hugging Face hub load: ``config.json`` and ``model.safetensors``."""

from dataclasses import asdict
from pathlib import Path
from typing import Union

from timm.models._hub import save_for_hf
from torch import nn


def save_for_hub(model: nn.Module, directory: Union[str, Path]) -> None:
    """Write a trained or deployed timm model so that ``create_model('local-dir:DIRECTORY', pretrained=True)`` loads it.

    The folder is what ``hf-hub:`` sources hold too.

    Args:
        model: made by ``timm.create_model``.
        directory: folder; made where it does not exist.

    Raises:
        ValueError: the model was not made by ``timm.create_model``.
    """
    if not getattr(model, 'pretrained_cfg', None) or not hasattr(model, 'arch'):
        raise ValueError(
            f'{type(model).__name__} carries no timm configuration; make it with timm.create_model before saving it.'
        )
    arch = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(model.arch).items()}
    arguments = dict(arch=arch, **(dict(deploy=True) if model.deploy else {}))
    save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)

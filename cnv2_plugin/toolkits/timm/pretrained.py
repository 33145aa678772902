"""Finds and reads the weights of ``pretrained=True``, and converts files of other origin."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional, Union

import torch
from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from ...archs import CondenseNetArch, ShuffleNetArch, Variant
from ...checkpoints import CheckpointError, find_state_dict, load_checkpoint
from ...checkpoints.official import import_official_state_dict, is_official
from ...checkpoints.shufflenet import is_foreign_shufflenet, remap_shufflenet
from ...deploy.condense import condense_state_dict
from ...layers import SelectiveLinear


def with_weights(variant: Variant, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Add weights read by our own safe loader to the keyword arguments of an entry point.

    Files and addresses are opened here, because timm names cached files by the end of an address (those of released
    weights end in ``/?dl=1``) and refuses files that hold training options. Hub and folder sources hold weights in our
    own format and are left to timm.
    """
    overlay = dict(kwargs.get('pretrained_cfg_overlay') or {})
    config = resolve_pretrained_cfg(variant.name, kwargs.get('pretrained_cfg'), overlay)
    in_our_format = config.state_dict or config.source in ('hf-hub', 'local-dir')
    if in_our_format or (config.hf_hub_id and not config.file):
        return kwargs
    if config.file:
        path = Path(config.file)
    elif config.url:
        path = download(config.url, variant.name, kwargs.get('cache_dir'), variant.weights_page)
    else:
        raise RuntimeError(_no_address(variant))
    try:
        state_dict = find_state_dict(load_checkpoint(path))
    except CheckpointError as error:
        raise CheckpointError(f'weights of {variant.name}: {error}') from error
    return {**kwargs, 'pretrained_cfg_overlay': {**overlay, 'state_dict': state_dict}}


def download(
    url: Union[str, tuple[str, str]], name: str, cache_dir: Optional[Union[str, Path]] = None, page: str = ''
) -> Path:
    """Download a checkpoint into the cache, unless it is there already; show a progress bar on a terminal.

    The file is called ``name`` and a hash of ``url``, unless that is an address and a file name. Nothing else is kept.
    """
    url, file_name = url if isinstance(url, (tuple, list)) else (url, '')
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / (file_name or f'{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.pth')
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}-{os.getpid()}{path.suffix}')
    try:
        torch.hub.download_url_to_file(url, str(temporary), progress=sys.stderr.isatty())
        load_checkpoint(temporary)
        temporary.replace(path)
    except (OSError, CheckpointError, ValueError) as error:
        other = f', or get the file from {page} and give it as pretrained_cfg_overlay=dict(file=...)' if page else ''
        reason = ' '.join(str(error).split())
        raise CheckpointError(f'{url} gave no checkpoint ({reason}); try again{other}.') from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def filter_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert the content of a checkpoint to the state dict that ``model`` loads.

    Reads our own files, those of the authors (CondenseNet, CondenseNetV2), and those of torchvision and MMPretrain
    (ShuffleNetV2). For a model with ``deploy=True`` weights of a finished training form are condensed.
    """
    state = find_state_dict(dict(checkpoint))
    if is_official(state):
        if not isinstance(model.arch, CondenseNetArch):
            raise CheckpointError(f'the file holds a CondenseNet, but the model is a {type(model).__name__}.')
        state = import_official_state_dict(state, **asdict(model.arch)).state_dict
    elif isinstance(model.arch, ShuffleNetArch) and is_foreign_shufflenet(state):
        if model.arch.with_sfr:
            raise CheckpointError(
                'the file holds a ShuffleNetV2 without reactivation; start from it with '
                'cnv2_plugin.checkpoints.init_from_shufflenet(model, file).'
            )
        state = remap_shufflenet(state)
    if model.deploy:
        selective = isinstance(model.classifier, SelectiveLinear) and 'classifier.index' not in state
        state = condense_state_dict(state, model, keep=model.classifier.keep if selective else None)
    return state


def forget_weights(model: nn.Module) -> None:
    """Drop the weights that :func:`with_weights` put into the model's configuration."""
    for holder in (model, getattr(model, 'model', None)):
        config = getattr(holder, 'pretrained_cfg', None)
        if isinstance(config, dict):
            config.pop('state_dict', None)


def _no_address(variant: Variant) -> str:
    name = variant.name
    if variant.weights_page:
        return (
            f'{name} has no address that a program can read: get its file from {variant.weights_page}, run '
            f"`cnv2 import-official FILE --out {name}.pth`, and use create_model('{name}', pretrained=True, "
            f"pretrained_cfg_overlay=dict(file='{name}.pth'))."
        )
    start = 'pretrained_cfg_overlay=dict(file=...)'
    if isinstance(variant.arch, ShuffleNetArch):
        start = 'init_from_shufflenet' if variant.arch.with_sfr else start
        start = f'start from weights of torchvision or MMPretrain by {start}'
    return f'No weights of {name} were released; use pretrained=False, or {start}.'

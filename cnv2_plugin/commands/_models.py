"""Models of commands that take ``CKPT|ARCH``: a checkpoint of any kind of ours, or a timm name."""

import argparse
import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

_LAYER = re.compile(r'stages\.(\d+)\.layers\.(\d+)\.')
META_KWARGS = ('arch', 'in_chans', 'num_classes', 'deploy', 'classifier_keep', 'global_pool', 'drop_rate')
"""Arguments of a model that a checkpoint may name itself; a file must not choose addresses or paths."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that settle what a checkpoint is."""
    parser.add_argument(
        '--arch', help='timm name of the network in the checkpoint; by default what the file says, or what fits'
    )
    parser.add_argument('--no-ema', action='store_true', help='take the raw weights where there are averaged ones too')
    parser.add_argument('--trust', action='store_true', help='unpickle the checkpoint; only for files you trust')


def open_model(name: str, args: argparse.Namespace):
    """The model of a checkpoint, or an untrained one of a timm name whose pruning its random weights decided.

    Args:
        name: timm name, or path of a checkpoint (either form; timm's, MMPretrain's or the authors' names of tensors).
        args: with the options of :func:`add_model_options`.

    Returns:
        Title and model in eval mode.

    Raises:
        ValueError: there is no such variant, or the checkpoint does not fit.
        CheckpointError: the file cannot be read.
    """
    if not _is_file(name):
        return f'{name} (untrained)', _untrained(name)
    from ..checkpoints import find_state_dict, load_checkpoint
    from ..checkpoints.official import import_official_state_dict, is_official
    from ..toolkits.key_map import convert_keys

    checkpoint = load_checkpoint(name, args.trust)
    state_dict = find_state_dict(checkpoint, use_ema=not args.no_ema)
    if is_official(state_dict):
        imported = import_official_state_dict(state_dict, checkpoint.get('args'))
        arch, kwargs, state_dict = imported.model_name, imported.model_kwargs, imported.state_dict
    else:
        state_dict, _ = convert_keys(state_dict, 'timm')
        arch, kwargs = _told(checkpoint.get('meta'))
        if args.arch and args.arch != arch:
            arch, kwargs = args.arch, {}
        arch = arch or _fitting(state_dict, name)
    title = Path(name).stem if arch in ('condensenetv2', 'condensenet') else f'{arch} ({Path(name).name})'
    return title, build_model(state_dict, arch, kwargs, name)


def build_model(state_dict: Mapping[str, Any], arch: str, kwargs: Mapping[str, Any], source: str):
    """Build the timm model that a state dict belongs to and load it strictly.

    What the file says is compared with its own tensors before anything of that size is made.

    Raises:
        ValueError: it does not fit.
    """
    import timm

    kwargs = {**_told_by_tensors(state_dict), **kwargs}
    shape = kwargs.get('arch')
    _check_size(shape if isinstance(shape, Mapping) else {}, state_dict, source)
    if arch not in timm.list_models():
        from ..archs import find_variant

        find_variant(arch)
    model = timm.create_model(arch, **kwargs, device='meta')
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    differing = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if differing:
        raise ValueError(
            f'{source} does not fit {arch}: {len(differing)} tensors are missing, unknown or of another shape, such as '
            f'{", ".join(differing[:3])}; give the name of its network with --arch.'
        )
    model = timm.create_model(arch, **kwargs)
    model.load_state_dict(dict(state_dict))
    return model.eval()


def _is_file(name: str) -> bool:
    return Path(name).exists() or Path(name).suffix in ('.pth', '.pt', '.tar', '.safetensors', '.ckpt')


def _untrained(name: str):
    import timm
    import torch

    from .. import toolkits  # noqa: F401  (registers the models)
    from ..archs import find_variant
    from ..layers import GroupSparseConv2d

    find_variant(name)
    torch.manual_seed(0)
    model = timm.create_model(name)
    for layer in model.modules():
        if isinstance(layer, GroupSparseConv2d):
            layer.prune_to(layer.num_stages)
    return model.eval()


def _told(meta: Any) -> tuple[Optional[str], dict[str, Any]]:
    """Name and arguments that a checkpoint of ours says it was made with."""
    if not isinstance(meta, Mapping):
        return None, {}
    name = meta.get('model_name') or meta.get('arch')
    kwargs = _plain(meta.get('model_kwargs') or {})
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        return None, {}
    return name, {key: value for key, value in kwargs.items() if key in META_KWARGS}


def _plain(value: Any) -> Any:
    """Values that safetensors holds as text."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError):
            continue
    return {}


def _told_by_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if any(key.endswith(('gather.index', 'scatter.index')) for key in state_dict):
        kwargs['deploy'] = True
    kwargs['num_classes'] = len(state_dict['classifier.weight']) if 'classifier.weight' in state_dict else 0
    stem = state_dict.get('stem.weight', state_dict.get('stem.conv.weight'))
    if stem is not None and stem.ndim == 4:
        kwargs['in_chans'] = stem.shape[1]
    return kwargs


def _fitting(state_dict: Mapping[str, Any], source: str) -> str:
    """The variant whose every tensor has the shape of the file's.

    Raises:
        ValueError: there is none.
    """
    import timm

    from ..archs import VARIANTS

    told = _told_by_tensors(state_dict)
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    for name, variant in VARIANTS.items():
        if _layers(variant.arch) != _layers_of(state_dict):
            continue
        model = timm.create_model(name, **told, device='meta')
        if {key: tuple(value.shape) for key, value in model.state_dict().items()} == given:
            return name
    raise ValueError(
        f'{source} fits none of the {len(VARIANTS)} variants that "cnv2 cost --all" lists; give the name of its '
        f'network with --arch, or save it with its shape (save_checkpoint(..., meta=dict(arch=..., model_kwargs=...))).'
    )


def _layers(arch: Any) -> dict[int, int]:
    """Layers of each stage."""
    return dict(enumerate(getattr(arch, 'layers', None) or arch.repeats))


def _layers_of(state_dict: Mapping[str, Any]) -> dict[int, int]:
    found = {tuple(map(int, match.groups())) for match in map(_LAYER.match, state_dict) if match}
    stages = [stage for stage, _ in found]
    return {stage: stages.count(stage) for stage in stages}


def _check_size(shape: Mapping[str, Any], state_dict: Mapping[str, Any], source: str) -> None:
    """Refuse a shape that promises more layers or channels than the file has tensors or elements."""
    most = sum(value.numel() for value in state_dict.values())
    for name, value in shape.items():
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        limit = len(state_dict) if name == 'layers' else most
        if any(isinstance(number, (int, float)) and number > limit for number in numbers) or len(numbers) > limit:
            raise ValueError(f'{source} says that its shape has {name}={value}, which its own tensors cannot fill.')

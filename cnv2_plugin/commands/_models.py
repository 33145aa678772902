"""Trained models that commands open: a checkpoint of any kind of ours, or a timm name."""

import argparse
import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ._usage import CHECKPOINTS, add_weights_options, weights_of

_LAYER = re.compile(r'stages\.(\d+)\.layers\.(\d+)\.')
META_KWARGS = ('arch', 'in_chans', 'num_classes', 'deploy', 'classifier_keep', 'global_pool', 'drop_rate')
"""Arguments of a model that a checkpoint may name itself; a file must not choose addresses or paths."""


@dataclass(frozen=True)
class Source:
    """A model that a command opened, and what must be known to write it again.

    Attributes:
        meta: arch and arguments, or names of the classes, stored beside deployed weights.
        metadata: stored in ONNX files, beside what the model says itself.
        views: modules of it to compare, by name; the first one is exported.
        cfg: the OpenMMLab config that it is of, or None.
        kind: ``classifier``, ``detector`` or ``segmenter``.
    """

    name: str
    model: Any
    input_size: tuple[int, int, int]
    meta: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    views: Mapping[str, Callable] = field(default_factory=lambda: {'the condensed model': lambda model: model})
    cfg: Any = None
    kind: str = 'classifier'


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that settle what a checkpoint is."""
    parser.add_argument(
        '--arch', help='timm name of the network in the checkpoint; by default what the file says, or what fits'
    )
    add_weights_options(parser)


def is_name(model: str) -> bool:
    """Whether a command line means a timm name, not a file."""
    return not Path(model).exists() and Path(model).suffix not in (*CHECKPOINTS, '.tar', '.ckpt')


def open_model(name: str, args: argparse.Namespace, trained: bool = False) -> Source:
    """The model of a checkpoint, or an untrained one of a timm name whose pruning its random weights decided.

    Checkpoints are in either form, with timm's, MMPretrain's or the authors' names of tensors; ``trained`` refuses the
    condensed form. ``args`` are as of :func:`add_model_options`, with ``input`` and ``model_kwargs`` of some commands.
    """
    size, more = getattr(args, 'input', None), dict(getattr(args, 'model_kwargs', ()))
    if is_name(name):
        model = _untrained(name, more)
        meta = dict(arch=name, model_kwargs=more, num_classes=model.num_classes)
        return Source(f'{name} (untrained)', model, _input_size(model, size), meta)
    from ..checkpoints import load_checkpoint
    from ..checkpoints.official import import_official_state_dict, is_official
    from ..toolkits.key_map import convert_keys

    checkpoint = load_checkpoint(name, args.trust)
    state_dict = _weights(checkpoint, args, trained, _names(args.arch))
    if is_official(state_dict):
        imported = import_official_state_dict(state_dict, checkpoint.get('args'))
        arch, kwargs, state_dict = imported.model_name, imported.model_kwargs, imported.state_dict
    else:
        if not args.arch or any(key.startswith('backbone.') for key in state_dict):
            state_dict, _ = convert_keys(state_dict, 'timm')
        arch, kwargs = _told(checkpoint.get('meta'))
        if args.arch and args.arch != arch:
            arch, kwargs = args.arch, {}
        arch = arch or _fitting(state_dict, name)
    kwargs = {**kwargs, **more}
    model = _build(state_dict, arch, kwargs, name)
    title = Path(name).stem if arch in ('condensenetv2', 'condensenet') else f'{arch} ({Path(name).name})'
    meta = dict(arch=arch, model_kwargs=kwargs, num_classes=model.num_classes)
    return Source(title, model, _input_size(model, size), meta, _facts(checkpoint))


def _facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its images and classes, and the config in it, which is read and not run."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    found: dict[str, Any] = {}
    if isinstance(meta.get('cfg'), str):
        with suppress(ImportError, KeyError, TypeError, AttributeError, ValueError):
            from ..toolkits.openmmlab.preprocessing import preprocessing, read_config

            found |= preprocessing(read_config(meta['cfg']))
    told = _plain(meta.get('preprocessing') or {})
    found |= told if isinstance(told, Mapping) else {}
    names = meta.get('dataset_meta')
    names = names.get('classes') if isinstance(names, Mapping) else None
    classes = names or meta.get('CLASSES') or checkpoint.get('class_names') or checkpoint.get('classes')
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        found['classes'] = list(classes)
    return found


def open_config_model(config: str, name: str, args: argparse.Namespace, trained: bool = False) -> Source:
    """The model of an OpenMMLab config with the weights of a checkpoint; arguments as of :func:`open_model`."""
    from ..checkpoints import load_checkpoint
    from ..models.modes import in_eval
    from ..toolkits.openmmlab.deploy_files import build
    from ..toolkits.openmmlab.runner_config import load_config
    from ..toolkits.openmmlab.safe_loading import safe_loading
    from ._config_models import compared_views, input_size_of, onnx_metadata, plain_meta

    cfg = load_config(config)
    checkpoint = load_checkpoint(name, args.trust)
    with safe_loading(args.trust):
        model = in_eval(build(cfg))
    state_dict = _weights(checkpoint, args, trained, model.state_dict().keys())
    _check_fit(model.state_dict(), state_dict, name, config, 'that the checkpoint is of this config')
    model.load_state_dict(state_dict)
    meta = plain_meta(checkpoint)
    size = tuple(args.input or input_size_of(cfg))
    kind, views = compared_views(model)
    return Source(config, model, size, meta, onnx_metadata(cfg, meta), views, cfg, kind)


def _weights(checkpoint: dict[str, Any], args: argparse.Namespace, trained: bool, known: Collection) -> dict[str, Any]:
    state_dict = weights_of(checkpoint, args, known)
    if trained and _is_condensed(state_dict):
        raise ValueError('the checkpoint is condensed already; give the trained checkpoint, in training form.')
    return state_dict


def _names(arch: Optional[str]) -> Collection[str]:
    """Names of the tensors of a timm model, as far as it can be built by its name alone."""
    import timm

    if arch is None or arch not in timm.list_models():
        return ()
    return timm.create_model(arch, device='meta').state_dict().keys()


def _check_fit(own: Mapping[str, Any], state_dict: Mapping[str, Any], source: str, name: str, hint: str) -> None:
    """Raise a ValueError where names or shapes of a checkpoint's tensors differ from those of a model."""
    from ..checkpoints.io import misfit

    fault = misfit(own, state_dict)
    if fault:
        raise ValueError(f'{source} does not fit {name}: it {fault}; check {hint}.')


def _is_condensed(state_dict: Mapping[str, Any]) -> bool:
    return any(key.endswith(('gather.index', 'scatter.index')) for key in state_dict)


def _build(state_dict: Mapping[str, Any], arch: str, kwargs: Mapping[str, Any], source: str):
    """The timm model that a state dict belongs to, loaded strictly.

    What the file says is compared with its own tensors before anything of that size is made.
    """
    import timm
    import torch

    from ..archs import find_variant

    kwargs = {**_told_by_tensors(state_dict), **kwargs}
    shape = kwargs.get('arch')
    _check_size(shape if isinstance(shape, Mapping) else {}, state_dict, source)
    if arch not in timm.list_models():
        find_variant(arch)
    try:
        with torch.device('meta'):
            own = timm.create_model(arch, **kwargs).state_dict()
    except TypeError as error:
        raise ValueError(f'{arch} cannot be built: {error}; check --model-kwargs.') from error
    _check_fit(own, state_dict, source, arch, 'the name of its network (--arch) and its arguments')
    model = timm.create_model(arch, **kwargs)
    model.load_state_dict(dict(state_dict))
    return model.eval()


def _input_size(model, given: Optional[list[int]]) -> tuple[int, int, int]:
    channels = getattr(model, 'in_chans', 3)
    size = tuple(given or (channels, *model.pretrained_cfg['input_size'][1:]))
    if min(size) < 1 or size[0] != channels:
        raise ValueError(f'--input is {size}; this network takes ({channels}, H, W) with H and W of at least 1.')
    return size


def _untrained(name: str, kwargs: Mapping[str, Any]):
    import timm
    import torch

    from .. import toolkits  # noqa: F401  (registers the models)
    from ..archs import find_variant

    find_variant(name)
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for layer in model.sparse_layers():
        layer.prune_to(layer.num_stages)
    return model


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
        with suppress(ValueError, SyntaxError):
            return read(value)
    return {}


def _told_by_tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    kwargs: dict[str, Any] = dict(deploy=True) if _is_condensed(state_dict) else {}
    if 'classifier.weight' in state_dict:
        kwargs['num_classes'] = len(state_dict['classifier.weight'])
    elif _layers_of(state_dict):
        kwargs['num_classes'] = 0
    stem = state_dict.get('stem.weight', state_dict.get('stem.conv.weight'))
    if stem is not None and stem.ndim == 4:
        kwargs['in_chans'] = stem.shape[1]
    return kwargs


def _fitting(state_dict: Mapping[str, Any], source: str) -> str:
    """The variant whose every tensor has the shape of the file's; raises a ValueError where there is none."""
    import timm

    from ..archs import VARIANTS
    from ..checkpoints.io import misfit

    told, layers = _told_by_tensors(state_dict), _layers_of(state_dict)
    for name, variant in VARIANTS.items():
        if layers != dict(enumerate(getattr(variant.arch, 'layers', None) or variant.arch.repeats)):
            continue
        if not misfit(timm.create_model(name, **told, device='meta').state_dict(), state_dict):
            return name
    raise ValueError(
        f'{source} fits none of the {len(VARIANTS)} variants that "cnv2 cost --all" lists; give the name of its '
        f'network with --arch, or save it with its shape (save_checkpoint(..., meta=dict(arch=..., model_kwargs=...))).'
    )


def _layers_of(state_dict: Mapping[str, Any]) -> dict[int, int]:
    """Layers of each stage."""
    found = {match.groups() for match in map(_LAYER.match, state_dict) if match}
    return Counter(int(stage) for stage, _ in found)


def _check_size(shape: Mapping[str, Any], state_dict: Mapping[str, Any], source: str) -> None:
    """Refuse a shape that promises more layers or channels than the file has tensors or elements."""
    most = sum(value.numel() for value in state_dict.values())
    for name, value in shape.items():
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        limit = len(state_dict) if name == 'layers' else most
        if any(isinstance(number, (int, float)) and number > limit for number in numbers) or len(numbers) > limit:
            raise ValueError(f'{source} says that its shape has {name}={value}, which its own tensors cannot fill.')

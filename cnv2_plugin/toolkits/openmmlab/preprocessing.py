"""How a config's test pipeline prepares images, in the words that ``cnv2_plugin.serving`` reads from a file."""

import ast
from collections.abc import Mapping
from typing import Any

_SILENT = ('LoadImageFromFile', 'LoadAnnotations', 'PackInputs', 'PackDetInputs', 'PackSegInputs', 'CenterCrop')


def preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the data preprocessor and the test pipeline of a config do to an image.

    Steps that serving does not know are named under ``unsupported``.
    """
    given = cfg['model'].get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    names = ('mean', 'std', 'to_rgb', 'bgr_to_rgb', 'pad_size_divisor')
    found = {name: given[name] for name in names if given.get(name) is not None}
    swaps = any(given.get(name) for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    found |= dict(channel_order='RGB' if swaps else 'BGR', range=255)
    unsupported = []
    for step in pipeline_of(cfg):
        kind = step['type'].rpartition('.')[2]
        resize = _resize(kind, step)
        if resize:
            backend = 'pillow' if step.get('backend') == 'pillow' else 'opencv'
            found |= dict(resize=resize, interpolation=step.get('interpolation', 'bilinear'), backend=backend)
        elif kind == 'Pad' and isinstance((step.get('pad_val') or {}).get('img'), (tuple, list)):
            found['pad_value'] = step['pad_val']['img'][0]
        elif kind not in _SILENT:
            unsupported.append(kind)
    return {**found, 'unsupported': unsupported} if unsupported else found


def read_config(text: str) -> dict[str, Any]:
    """The plain values that the text of a config assigns, as checkpoints carry it: read without running it.

    Raises:
        ValueError: it is no text of assignments of plain values.
    """
    try:
        assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        return {target.id: _value(n.value) for n in assignments for target in n.targets if isinstance(target, ast.Name)}
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'the config in the checkpoint cannot be read ({error}).') from error


def pipeline_of(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of the test pipeline, or of the one for validation."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    return list(loader.get('dataset', {}).get('pipeline', []))


def _resize(kind: str, step: Mapping[str, Any]) -> list[Any]:
    """The step in words of serving; empty where it is another one."""
    scale = step.get('scale')
    if kind == 'ResizeEdge' and step.get('edge', 'short') == 'short':
        return ['short', scale]
    if kind != 'Resize' or scale is None:
        return []
    width, height = (scale, scale) if isinstance(scale, int) else scale
    return ['inside' if step.get('keep_ratio') else 'exact', height, width]


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    return ast.literal_eval(node)

"""Configs as text, as OpenMMLab's checkpoints carry them: read without running them."""

import ast
from typing import Any


def read_config(text: str) -> dict[str, Any]:
    """The plain values that a config assigns.

    Raises:
        ValueError: it is no text of assignments of plain values.
    """
    try:
        assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        return {target.id: _value(n.value) for n in assignments for target in n.targets if isinstance(target, ast.Name)}
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'the config in the checkpoint cannot be read ({error}).') from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element) for element in node.elts]
    return ast.literal_eval(node)

"""Safe loading and atomic saving of checkpoints.

Checkpoints are untrusted: tensors and plain containers are read, anything that would run code is refused.
"""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .file_safety import OversizedError, check_archive, check_no_tar, check_old_format, check_tensors
from .safe_globals import admitted

_PREFIXES = ('module.', '_orig_mod.')
_CONTAINERS = ('state_dict_ema', 'state_dict', 'model_ema', 'model')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit; the message says what to do."""


class NeedsTrustError(CheckpointError):
    """A checkpoint holds objects that only unpickling, which can run code, would read."""


@contextmanager
def staged(*paths: Union[str, Path]) -> Iterator[list[Path]]:
    """Give a temporary path for each path; they take their places together when the block ends well.

    Each has the name of its path, in a hidden folder beside it that vanishes in the end. Where the block raises, no
    path is touched. The first path is renamed last: with it, the others are there.

    Raises:
        OSError: a folder does not exist or cannot be written, or a path is a folder that a file would replace.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        check_target(target)
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        for target in targets:
            if target.parent not in folders:
                try:
                    made = TemporaryDirectory(dir=target.parent, prefix=f'.{target.stem}-')
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(target)) from error
                folders[target.parent] = Path(stack.enter_context(made))
        temporaries = [folders[target.parent] / target.name for target in targets]
        yield temporaries
        for temporary in temporaries:
            if temporary.is_file():
                with open(temporary, 'rb') as file:
                    os.fsync(file.fileno())
        for temporary, target in reversed(list(zip(temporaries, targets))):
            temporary.replace(target)


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """Give a temporary file in place of ``path``, as :func:`staged` does for several."""
    with staged(path) as (temporary,):
        yield temporary


def check_target(path: Union[str, Path]) -> None:
    """Raise ``OSError`` where no file of that name can be written, before the work for it begins."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path} is a folder; give the name of a file.')
    check_folder(path)


def check_folder(path: Union[str, Path]) -> None:
    """Raise ``OSError`` where the folder that a file is to be in does not exist or cannot be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f'the folder {path.parent} of {path.name} does not exist; make it first.')
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f'the folder {path.parent} of {path.name} cannot be written; choose another folder.')


def check_finite(state_dict: Mapping[str, Any], source: Union[str, Path]) -> None:
    """Raise ``CheckpointError``, with the name of the first tensor, where any holds NaN or infinite values."""
    floats = {k: v for k, v in state_dict.items() if isinstance(v, Tensor) and v.is_floating_point()}
    broken = [name for name, value in floats.items() if not bool(value.isfinite().all())]
    if broken:
        more = f' (and {len(broken) - 1} more tensors)' if len(broken) > 1 else ''
        raise CheckpointError(
            f'{broken[0]} of {source} has NaN or infinite values{more}; give a checkpoint from before that.'
        )


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Where names or shapes of a model's own and given tensors differ, in words behind "the checkpoint", or ``''``."""
    for fault, keys in (
        ('lacks', [key for key in own if key not in given]),
        ('has unknown', [key for key in given if key not in own]),
        ('has other shapes for', [key for key in own if key in given and own[key].shape != given[key].shape]),
    ):
        if keys:
            return f'{fault} {", ".join(keys[:3])}{f" and {len(keys) - 3} more" if len(keys) > 3 else ""}'
    return ''


def load_checkpoint(path: Union[str, Path], trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint file without running anything that it contains.

    Besides tensors and plain containers, ``argparse.Namespace`` is admitted: training scripts save their options in
    one, and it holds values that are read under the same restriction, in a class without behaviour.

    Args:
        path: ``.safetensors``, or anything that ``torch.save`` wrote.
        trust: unpickle arbitrary objects; only for files whose origin you know.

    Returns:
        The dict in the file, tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, empty, damaged, no checkpoint, claims more memory than it holds, or needs
            ``trust``.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path} is not a file; give the path of a checkpoint.')
    if path.stat().st_size == 0:
        raise CheckpointError(f'{path} is empty; write or download it again.')
    checkpoint = _load_safetensors(path) if path.suffix == '.safetensors' else _load_pickle(path, trust)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}; a checkpoint is a dict of tensors.')
    try:
        check_tensors(checkpoint, path.stat().st_size)
    except OversizedError as error:
        raise CheckpointError(f'{path} is refused: {error}; download it again from where you trust.') from error
    return checkpoint


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}
            return dict(state_dict=state_dict, meta=dict(file.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(f'{path} is not a readable safetensors file ({error}); download it again.') from error


def _load_pickle(path: Path, trust: bool) -> Any:
    try:
        check_archive(path)
        with admitted():
            if not trust:
                check_no_tar(path)
                check_old_format(path)
            return torch.load(path, map_location='cpu', weights_only=not trust)
    except OversizedError as error:
        raise CheckpointError(f'{path} is refused: {error}; download it again from where you trust.') from error
    except MemoryError as error:
        raise CheckpointError(f'{path} asks for more memory than there is; download it again.') from error
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and not trust and 'weights_only' in str(error).lower():
            raise NeedsTrustError(
                f'{path} holds Python objects besides tensors, and reading those can run code; if you know where the '
                f'file comes from, repeat with --trust (trust=True).'
            ) from error
        raise CheckpointError(f'{path} is no checkpoint or is damaged; write or download it again.') from error


def find_state_dict(checkpoint: dict[str, Any], use_ema: bool = True) -> dict[str, Tensor]:
    """The weights in a checkpoint: EMA weights where there are any, else ``state_dict``, else the dict itself.

    Args:
        checkpoint: what :func:`load_checkpoint` returned.
        use_ema: prefer averaged weights.

    Returns:
        The state dict without the prefixes that DDP and torch.compile put before the keys.

    Raises:
        CheckpointError: there are no tensors in it.
    """
    containers = _CONTAINERS if use_ema else [name for name in _CONTAINERS if not name.endswith('_ema')]
    state_dict = next((checkpoint[name] for name in containers if isinstance(checkpoint.get(name), dict)), checkpoint)
    state_dict = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(
            f'the checkpoint holds no tensors under {", ".join(containers)} or at its top (its keys: '
            f'{", ".join(map(str, list(checkpoint)[:6])) or "none"}); give a file with model weights.'
        )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key[len(prefix) :]: value for key, value in state_dict.items()}
    return state_dict


def save_checkpoint(
    state_dict: dict[str, Tensor], path: Union[str, Path], meta: Optional[dict[str, Any]] = None
) -> None:
    """Write weights so that ``path`` holds either what it held before or the whole new file.

    Args:
        state_dict: tensors by name.
        path: written as safetensors when it ends in ``.safetensors``, else by ``torch.save``.
        meta: plain values stored beside the weights (as strings in safetensors).

    Raises:
        TypeError: an entry is no tensor.
        OSError: the file cannot be written.
    """
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(f'state_dict[{key!r}] is a {type(value).__name__}; a checkpoint takes tensors by name.')
    state_dict = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    with atomic_path(path) as temporary:
        if Path(path).suffix == '.safetensors':
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            unshared = {key: value.clone() for key, value in state_dict.items()}
            try:
                save_file(unshared, temporary, {key: str(value) for key, value in (meta or {}).items()})
            except SafetensorError as error:
                raise OSError(f'{path} cannot be written ({error}); check the folder and the free space.') from error
        else:
            torch.save(dict(state_dict=state_dict, meta=dict(meta or {})), temporary)

"""Safe loading and atomic saving of checkpoints.

Checkpoints are untrusted: tensors and plain containers are read, anything that would run code is refused.
"""

import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .file_safety import (
    CheckpointError,
    NeedsTrustError,
    OversizedError,
    admitted,
    check_archive,
    check_no_tar,
    check_old_format,
    check_tensors,
)

_OURS, _DAY = '.cnv2-', 24 * 3600
"""How the names of our temporary folders begin, and seconds after which one is of a writer that was killed."""


@contextmanager
def staged(*paths: Union[str, Path]) -> Iterator[list[Path]]:
    """Give a temporary path for each path; they take their places together when the block ends well.

    Each has the name of its path, in a hidden folder beside it that vanishes in the end. Where the block raises, no
    path is touched. The first path is renamed last: with it, the others are there. A symbolic link is written through,
    and a file that takes the place of another has its permissions.

    Raises:
        OSError: a folder does not exist or cannot be written, or a path is a folder that a file would replace.
    """
    for path in paths:
        check_target(path)
    targets = [Path(os.path.realpath(path) if Path(path).is_symlink() else path) for path in paths]
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        for target in targets:
            if target.parent not in folders:
                _remove_remains(target.parent)
                try:
                    made = TemporaryDirectory(dir=target.parent, prefix=f'{_OURS}{target.stem}-')
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(target)) from error
                folders[target.parent] = Path(stack.enter_context(made))
        temporaries = [folders[target.parent] / target.name for target in targets]
        try:
            yield temporaries
        except RuntimeError as error:
            if 'PytorchStreamWriter' in str(error):
                raise OSError(f'{paths[0]} cannot be written whole; check the free space, then try again.') from error
            raise
        for temporary, target in zip(temporaries, targets):
            if temporary.is_file():
                if target.is_file():
                    shutil.copymode(target, temporary)
                with open(temporary, 'rb') as file:
                    os.fsync(file.fileno())
        for temporary, target in reversed(list(zip(temporaries, targets))):
            temporary.replace(target)


def _remove_remains(folder: Path) -> None:
    """Remove what writers left that were killed in the middle."""
    for path in folder.glob(f'{_OURS}*-????????'):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path, ignore_errors=True)


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
    state_dict = {key: _own(value.detach().cpu().contiguous()) for key, value in state_dict.items()}
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


def _own(tensor: Tensor) -> Tensor:
    """A tensor without the rest of a larger storage that it is a part of, which would be written too."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() else tensor.clone()

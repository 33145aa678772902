"""The configs that the package contains, in OpenMMLab's layout: ``.mim/configs`` beside the code.

In a checkout ``.mim`` holds links to ``configs``, ``tools`` and ``model-index.yml``; ``setup.py`` puts the files
themselves into wheels.
"""

from difflib import get_close_matches
from pathlib import Path

PACKAGE = 'cnv2_plugin'
MIM = Path(__file__).parent / '.mim'


def config_names() -> list[str]:
    """List the configs of whole runs by the names that follow ``cnv2_plugin::``."""
    folder = _folder()
    names = (path.relative_to(folder) for path in folder.glob('*/**/*.py'))
    return sorted(name.as_posix() for name in names if name.parts[0] != '_base_')


def config_path(name: str) -> Path:
    """Find a config of the package, such as ``cnv2_plugin::condensenetv2/condensenetv2-a_8xb128-350e_in1k.py``.

    The package, the folder and the suffix may be left out. Bases are found by their folder: ``_base_/schedules/...``.

    Raises:
        ValueError: the package has none of that name; the message names the closest.
        FileNotFoundError: the installation has no configs.
    """
    package, given, wanted = name.rpartition('::')
    if given and package != PACKAGE:
        raise ValueError(f'{name} is a config of {package}; name one of {PACKAGE}, or give the path of a file.')
    wanted = wanted if wanted.endswith('.py') else f'{wanted}.py'
    names = config_names()
    if wanted.startswith('_base_/') and '..' not in wanted and (_folder() / wanted).is_file():
        return _folder() / wanted
    for found in names:
        if wanted in (found, found.rpartition('/')[2]):
            return _folder() / found
    close = get_close_matches(wanted, [*names, *(found.rpartition('/')[2] for found in names)], n=3, cutoff=0.0)
    raise ValueError(f'{PACKAGE} has no config {wanted}; did you mean {", ".join(close)}? "cnv2 configs" lists all.')


def _folder() -> Path:
    folder = MIM / 'configs'
    if not folder.is_dir():
        raise FileNotFoundError(
            f'This installation of {PACKAGE} has no configs ({folder} is missing); install it again with pip.'
        )
    return folder

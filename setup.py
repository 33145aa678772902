"""Packaging of cnv2_plugin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Requirement lines of ``requirements/<name>.txt``."""
    lines = (HERE / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='cnv2_plugin',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'cnv2_plugin/__init__.py').read_text()).group(1),
    description='CondenseNetV2, CondenseNet and SFR-ShuffleNetV2 for timm, MMPretrain and MMDetection',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['cnv2_plugin', 'cnv2_plugin.*']),
    package_data={'cnv2_plugin': ['**/*.json', '**/*.html']},
    python_requires='>=3.10',
    install_requires=requirements('core'),
    extras_require={name: requirements(name) for name in ('timm', 'openmmlab', 'deploy', 'analysis', 'dev')},
    entry_points={'console_scripts': ['cnv2=cnv2_plugin.cli:main']},
)

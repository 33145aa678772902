"""Packaging of cnv2_plugin; builds the native kernels where a C++ compiler is found."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).parent
CSRC = 'cnv2_plugin/kernels/csrc'
FLAGS = ['-std=c++17', '-O3', '-fPIC', '-fvisibility=hidden', '-ffp-contract=fast', '-pthread']
AVX2 = ['-mavx2', '-mfma']
AVX512 = [*AVX2, '-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mprefer-vector-width=512']
MIM = 'cnv2_plugin/.mim'
CHECKOUT_TOOLS = (
    '__init__.py', 'build_wheels.sh', 'draw_architecture.py', 'gpu_check.sh', 'make_touching_pairs.py',
    'mutate.py', 'mutate.sh', 'quickstart.py', 'quickstart.sh',
    'run_tests.sh', '_environment.sh', '_stack.sh', 'research', 'docs_site',
)  # fmt: skip
"""In tools/, what needs the repository around it."""

TARGETS = {
    'manylinux2014_x86_64': 'x86_64-linux-gnu.2.17',
    'manylinux2014_aarch64': 'aarch64-linux-gnu.2.17',
    'macosx_13_0_arm64': 'aarch64-macos.13.0',
    'macosx_13_0_x86_64': 'x86_64-macos.13.0',
    'win_amd64': 'x86_64-windows-gnu',
}
"""Platforms of wheels that ``CNV2_PLATFORM`` may name, as ziglang's compiler calls them (tools/build_wheels.sh)."""

PLATFORM = os.environ.get('CNV2_PLATFORM', '')
MACHINE = (PLATFORM or platform.machine()).lower()
X86 = MACHINE.endswith(('x86_64', 'amd64'))
ARM64 = MACHINE.endswith(('aarch64', 'arm64')) and bool(PLATFORM or sys.platform in ('linux', 'darwin'))
DOTPROD = ['-mcpu=generic+dotprod' if PLATFORM else '-march=armv8.2-a+dotprod']  # ziglang does not know the second


def requirements(name: str) -> list[str]:
    """Requirement lines of ``requirements/<name>.txt``."""
    lines = (HERE / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def compiler() -> list[str]:
    """The C++ compiler as words: ``$CXX``, g++ or clang++; none where there is none or CNV2_NO_KERNELS is set.

    For another platform it is ziglang's, which brings the libraries of that platform and links C++'s statically.
    """
    if PLATFORM and PLATFORM not in TARGETS:
        raise SystemExit(f'CNV2_PLATFORM is {PLATFORM}; take one of {", ".join(TARGETS)}, or leave it unset.')
    if PLATFORM:
        return [sys.executable, '-m', 'ziglang', 'c++', '-target', TARGETS[PLATFORM]]
    if os.environ.get('CNV2_NO_KERNELS') or sys.platform == 'win32':
        return []
    wanted = [shlex.split(os.environ['CXX'])] if os.environ.get('CXX') else [['g++'], ['clang++'], ['c++']]
    return next((words for words in wanted if shutil.which(words[0])), [])


def sources() -> dict[str, list[str]]:
    """Source files with the flags that only they get: one file for each instruction set."""
    plain = (
        'api', 'dispatch', 'kernels_baseline', 'memory', 'onnxruntime', 'program', 'programs', 'run', 'threads',
    )  # fmt: skip
    defined = ['-DCNV2_X86'] if X86 else ['-DCNV2_DOTPROD'] if ARM64 else []
    files = {f'{CSRC}/{name}.cpp': defined for name in plain}
    if X86:
        files[f'{CSRC}/kernels_avx2.cpp'] = [*defined, *AVX2]
        files[f'{CSRC}/kernels_avx512.cpp'] = [*defined, *AVX512]
        files[f'{CSRC}/kernels_avx512vnni.cpp'] = [*defined, *AVX512, '-mavx512vnni']
    if ARM64:
        files[f'{CSRC}/kernels_dotprod.cpp'] = [*defined, *DOTPROD]
    return files


class BuildWithConfigs(build_py):
    """Puts configs, tools and the model index into ``.mim``, where OpenMMLab looks for them in a package."""

    def run(self) -> None:
        """Build; an editable installation has links there already."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, MIM)
        shutil.rmtree(target, ignore_errors=True)
        for name in ('configs', 'tools'):
            shutil.copytree(HERE / name, target / name, ignore=shutil.ignore_patterns('__pycache__', *CHECKOUT_TOOLS))
        shutil.copy2(HERE / 'model-index.yml', target)


class BuildKernels(build_ext):
    """Builds one library that Python loads by path; where that fails the package is installed without it."""

    def get_ext_filename(self, fullname: str) -> str:
        """Not tied to a version of Python."""
        return f'{fullname.replace(".", "/")}{".dll" if PLATFORM.startswith("win") else ".so"}'

    def run(self) -> None:
        """Build, or say in one sentence why not; what an earlier build left does not go into a wheel."""
        try:
            super().run()
        except (OSError, subprocess.CalledProcessError) as error:
            if PLATFORM:
                raise
            print(f'cnv2_plugin: the native kernels could not be built ({error}); everything else works without them.')
            if not self.inplace:
                for ext in self.extensions:
                    Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.extensions = self.distribution.ext_modules = []

    def build_extension(self, ext: Extension) -> None:
        """Compile the sources side by side and link them."""
        target = Path(self.get_ext_fullpath(ext.name))
        objects = Path(self.build_temp, 'kernels')
        for folder in (target.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)

        def compile_one(item: tuple[str, list[str]]) -> str:
            source, extra = item
            made = str(objects / f'{Path(source).stem}.o')
            subprocess.run([*compiler(), *FLAGS, *extra, '-c', source, '-o', made], check=True)
            return made

        print('cnv2_plugin: building the native kernels (about 20 seconds)')
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made = list(pool.map(compile_one, sources().items()))
        linked, temporary = objects / target.name, target.with_name(f'{target.name}.part')
        strip = ['-s'] if PLATFORM else []
        subprocess.run([*compiler(), '-shared', '-pthread', *strip, *made, '-o', str(linked)], check=True)
        shutil.copy2(linked, temporary)
        temporary.replace(target)


class PlatformWheel(bdist_wheel):
    """The kernels need a platform, but no version of Python."""

    def run(self) -> None:
        """Build the kernels first: the name of the wheel tells whether they could be built."""
        self.run_command('build_ext')
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>`` with kernels, ``py3-none-any`` without."""
        python, abi, tag = super().get_tag()
        return ('py3', 'none', PLATFORM or tag) if self.distribution.has_ext_modules() else (python, abi, tag)


setup(
    name='cnv2_plugin',
    version=re.search(r"__version__ = '(.+)'", (HERE / 'cnv2_plugin/__init__.py').read_text()).group(1),
    description='CondenseNetV2, CondenseNet and SFR-ShuffleNetV2 for timm, MMPretrain and MMDetection',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['cnv2_plugin', 'cnv2_plugin.*']),
    package_data={'cnv2_plugin': ['py.typed', '**/*.json', '**/*.html', 'kernels/csrc/*']},
    ext_modules=[Extension('cnv2_plugin.kernels._native', list(sources()))] if compiler() else [],
    cmdclass={'build_py': BuildWithConfigs, 'build_ext': BuildKernels, 'bdist_wheel': PlatformWheel},
    python_requires='>=3.10',
    install_requires=requirements('core'),
    extras_require={
        name: requirements(name)
        for name in ('timm', 'openmmlab', 'onedl', 'deploy', 'analysis', 'lightning', 'transformers', 'dev', 'docs')
    },
    entry_points={'console_scripts': ['cnv2=cnv2_plugin.cli:main']},
)

"""Runs of OpenMMLab configs, trained and tested by ``cnv2 train`` and ``cnv2 test`` in processes of their own."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnv2_plugin.kernels import available

from .runs import Place

if TYPE_CHECKING:
    from mmengine.config import Config

FILES = ('standard', 'native')
"""Forms that are ONNX files."""


@dataclass(frozen=True)
class ConfigRun:
    """One config.

    Attributes:
        config: path of the file.
        options: ``key=value`` as of ``--cfg-options``.
        name: of the run.
    """

    config: Path
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of the config."""
        return self.config.stem

    def settings(self) -> dict[str, Any]:
        """The config as it is with the options, without what only says where things are."""
        return json.loads(json.dumps(self._merged().to_dict(), default=str))

    def perform(self, seed: int, folder: Path, place: Place) -> dict[str, Any]:
        """Train, going on from the last checkpoint, and test as trained.

        What was pruned is also tested condensed and, of detectors, as ONNX files in standard operators and native.
        """
        options = [f'randomness.seed={seed}', *self.options]
        trained = folder / 'training_time.json'
        if not trained.exists():
            resumed = (folder / 'last_checkpoint').exists()
            used = _cpu_seconds()
            _call('train', self.config, '--work-dir', folder, *(['--resume'] if resumed else []), options=options)
            seconds = dict(seconds=round(_cpu_seconds() - used, 1), last_sitting_only=resumed)
            trained.write_text(json.dumps(seconds) + '\n')
        checkpoint = (folder / 'last_checkpoint').read_text().strip()
        figures = json.loads(trained.read_text())
        for form, flags in self._forms().items():
            metrics, tested = folder / f'metrics_{form}.json', checkpoint
            if form in FILES and not metrics.exists():
                tested = folder / f'{form}.onnx'
                _call('deploy', self.config, checkpoint, '--out', tested, *flags)
                flags = []
            if not metrics.exists():
                _call('test', self.config, tested, '--work-dir', folder / form, '--out', metrics, *flags,
                      options=options)  # fmt: skip
            figures[form] = json.loads(metrics.read_text())
        return figures

    def _forms(self) -> dict[str, list[str]]:
        """What is tested, with the options that make it: of ``cnv2 deploy`` for files, else of ``cnv2 test``."""
        forms = dict(trained=[])
        if self._prunes():
            forms['condensed'] = ['--deploy']
            if self._merged().get('default_scope') == 'mmdet':
                forms |= dict(standard=[], native=['--native']) if available() else dict(standard=[])
        return forms

    def cost(self, input_size: tuple[int, int, int]) -> dict[str, int]:
        """Multiply-adds and parameters of the network for one image, without what its training prunes."""
        from cnv2_plugin.analysis import count_cost
        from cnv2_plugin.toolkits.openmmlab.deploy_files import build

        found = count_cost(build(self._merged()), input_size)
        if not self._prunes():
            return dict(mult_adds=found.mult_adds, params=found.params, params_unpruned=found.params)
        return dict(mult_adds=found.mult_adds_pruned, params=found.params_pruned, params_unpruned=found.params)

    def _prunes(self) -> bool:
        """Whether anything of the network is pruned in training."""
        kinds = [hook['type'] for hook in self._merged().get('custom_hooks') or []]
        names = [kind if isinstance(kind, str) else kind.__name__ for kind in kinds]
        return any(name.rpartition('.')[2] == 'StagedSparsificationHook' for name in names)

    def _merged(self) -> 'Config':
        from mmengine.config import Config

        from cnv2_plugin.toolkits.openmmlab.runner_config import parse_options

        cfg = Config.fromfile(self.config)
        if self.options:
            cfg.merge_from_dict(parse_options(self.options))
        return cfg


def _call(command: str, *arguments, options: Sequence[str] = ()) -> None:
    """Run a command of ``cnv2`` with one thread."""
    words = [sys.executable, '-m', 'cnv2_plugin.cli', command, *map(str, arguments)]
    words += ['--cfg-options', *options] if options else []
    subprocess.run(words, check=True, env=dict(os.environ, OMP_NUM_THREADS='1'))


def _cpu_seconds() -> float:
    """Processor time of the finished child processes: unlike wall time, other work on the machine adds little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

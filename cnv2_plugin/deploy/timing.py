"""Timing of callables in interleaved rounds, and the sessions of ONNX Runtime that are timed."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from ..kernels.library import register_operators

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Runner = Callable[[], object]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """Latency of one call in milliseconds over all rounds."""

    min: float
    median: float
    max: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> 'Timing':
        """Summarise measured seconds."""
        return cls(min(seconds) * 1e3, statistics.median(seconds) * 1e3, max(seconds) * 1e3, len(seconds))


def interleave(runners: Mapping[Any, Runner], rounds: int = 40, **options: Any) -> dict[Any, Timing]:
    """Latency of every runner over the rounds of :func:`interleaved_seconds`, which takes the same arguments.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    return {key: Timing.of(seconds) for key, seconds in interleaved_seconds(runners, rounds, **options).items()}


def interleaved_seconds(
    runners: Mapping[Any, Runner],
    rounds: int = 40,
    warmup: int = 5,
    progress: Optional[Progress] = None,
    clock: Callable[[], float] = time.perf_counter,
    warmup_each_round: int = 0,
) -> dict[Any, list[float]]:
    """Time every runner once a round, so that a drift of the machine meets all alike.

    Three and more are shuffled every round, from a fixed seed: what a runner leaves in the caches makes the next one
    faster or slower, and would always meet the same one. No runner follows itself, so that two take turns.

    Args:
        runners: callables without arguments.
        rounds: measured rounds.
        warmup: calls of each runner before the first round.
        progress: called with a short text now and then.
        clock: tells the seconds; ``time.process_time`` leaves out what other programs take from a single thread.
        warmup_each_round: unmeasured calls right before each measured one. Networks whose weights are larger than the
            caches push each other's out; one brings them back to where a network has them that runs over and over.

    Returns:
        Seconds of every round, in their order, by runner.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds is {rounds}; a measurement takes at least 1 round.')
    for run in runners.values():
        for _ in range(warmup):
            run()
    seconds: dict[Any, list[float]] = {key: [] for key in runners}
    order, generator = list(runners.items()), random.Random(0)
    for i in range(rounds):
        last = order[-1:]
        generator.shuffle(order)
        if last and order[:1] == last:
            order.append(order.pop(0))
        for key, run in order:
            for _ in range(warmup_each_round):
                run()
            start = clock()
            run()
            seconds[key].append(clock() - start)
        if progress and (i + 1) % max(1, rounds // 10) == 0:
            progress(f'round {i + 1} of {rounds}')
    return seconds


def onnx_session(model: Union[Path, bytes], threads: int = 1) -> 'InferenceSession':
    """A session of ONNX Runtime with every graph optimisation and ``threads`` threads.

    Args:
        model: ONNX file, or what would stand in it.
        threads: threads of one operator.
    """
    import onnxruntime

    options = register_operators(onnxruntime.SessionOptions())
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry('session.force_spinning_stop', '1')  # or idle sessions keep processors busy
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])

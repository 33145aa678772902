"""Measuring: latency of every form in several runtimes, peers, the limit of the machine."""

from ..deploy.timing import Timing, interleave
from ..models.multiply_adds import count_mult_adds
from .latency import Measurement, benchmark, exponent, pinned, random_finished
from .machine import machine, roofline

__all__ = [
    'Measurement',
    'Timing',
    'benchmark',
    'count_mult_adds',
    'exponent',
    'interleave',
    'machine',
    'pinned',
    'random_finished',
    'roofline',
]

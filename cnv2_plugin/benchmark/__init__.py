"""Measuring: latency of every form in several runtimes, peers, the limit of the machine."""

from ..models.multiply_adds import count_mult_adds
from .latency import Measurement, Timing, benchmark, exponent, interleave, pinned, random_finished
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

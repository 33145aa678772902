"""Measuring: latency of every form in several runtimes, training cost, peers, the authors' form restated."""

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

"""Counting and showing what a network does."""

from .cost import Cost, count_cost

__all__ = ['Cost', 'count_cost']

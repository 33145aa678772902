"""Lowering: the fastest exact form of a condensed model, out of standard operators.

``describe`` turns parts of a model into a plain :class:`~.graph.Graph`; ``rewrites`` holds exact rewrites of it;
``forms`` names the forms that a layer can take; ``table`` and ``tuner`` choose among them; ``module`` makes the graph a
PyTorch module again.
"""

from .lower import lower, lowered_forms
from .tuner import tune

__all__ = ['lower', 'lowered_forms', 'tune']

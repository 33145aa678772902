"""Cost, sparsity and connection maps of a network, as figures, pictures and a report."""

from .cost import Cost, count_cost
from .heatmap import ConnectionMap, connection_map, plot_maps
from .sparsity import SparsityReport, plot_sparsity, sparsity_report

__all__ = [
    'ConnectionMap',
    'Cost',
    'SparsityReport',
    'connection_map',
    'count_cost',
    'plot_maps',
    'plot_sparsity',
    'sparsity_report',
]

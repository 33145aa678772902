"""``cnv2 export``: another name for ``cnv2 deploy``."""

from .deploy import PRINTS_TABLES, add_arguments, run

__all__ = ['PRINTS_TABLES', 'add_arguments', 'run']

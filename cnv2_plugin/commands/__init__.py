"""One module for each ``cnv2`` command: ``HELP``, ``add_arguments(parser)`` and ``run(args)``."""

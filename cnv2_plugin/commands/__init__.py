"""One module for each ``cnv2`` command: ``add_arguments(parser)`` and ``run(args)``."""

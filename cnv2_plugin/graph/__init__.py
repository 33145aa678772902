"""The network as data: description, builders from modules, exact rewrites, implementations, standard operators."""

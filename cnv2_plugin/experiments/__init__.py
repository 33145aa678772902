"""Experiments: named runs that are trained once, resumed where they stopped, and kept as small JSON files."""

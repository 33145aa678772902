"""Whole detectors and segmenters in one file: the network, its heads and what its toolkit does with their outputs."""

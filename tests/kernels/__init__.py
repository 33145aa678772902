"""The native kernels."""

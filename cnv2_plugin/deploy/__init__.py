"""Condensing, exporting, verifying and measuring trained models."""

from .condense import condense

__all__ = ['condense']

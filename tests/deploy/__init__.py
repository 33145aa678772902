"""Tests of condensing, exporting and measuring."""

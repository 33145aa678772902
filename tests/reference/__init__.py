"""The method restated slowly, straight from its definitions: what the fast code is compared with.

Nothing here imports the package under test, and nothing here is meant to be fast.
"""

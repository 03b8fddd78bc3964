"""Passes: pure functions from a value to a new one, one pass per file.

They edit no graph and no weight: `head_dimensions` has `rewrite` make the lean model that it looks
at. To add a pass, write one file here and call it in `snello.simplification.sequence`.
"""

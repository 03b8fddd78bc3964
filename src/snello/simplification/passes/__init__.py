"""Passes: pure functions from a value to a new one, one pass per file.

May import `bypasses`, `ops`, `ir` and `snello.simplification.cost`; never edit a graph or a
weight. To add a pass, write one file here and call it in `snello.simplification.simplify`, which
sequences them.
"""

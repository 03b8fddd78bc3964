"""Recipes: one YAML file per run; data, not code. ``snello recipes ls`` lists them, ``cp`` gives
you your own.
"""

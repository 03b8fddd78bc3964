"""Recipes: one YAML file per run; data, not code.

``snello recipes ls`` lists them, ``snello recipes cp`` copies one.
"""

"""Recipes: one YAML file describes one run, without code.

``snello recipes ls`` lists them, ``snello recipes cp`` copies one.
"""

"""The experiment application: the papers' networks, datasets, recipes, training runs and reports.

The library itself never imports this package. Its command line is `snello`.
"""

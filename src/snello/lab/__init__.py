"""The experiment application: the papers' networks, datasets, recipes, training runs and reports.

Nothing of the library itself imports it. Its command is ``snello``.
"""

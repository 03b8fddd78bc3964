"""Intermediate representation: data only.

This package holds the facts about channels (signals, layouts) and the decisions (the plan, its
edits and folds), as frozen records with their JSON. It imports torch tensors and `snello.errors`,
no `torch.nn`, and changes nothing. A new kind of edit is one record in `edits.py` and an
applier in `rewrite/appliers.py`.
"""

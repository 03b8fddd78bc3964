"""Intermediate representation: data only.

This room holds what is known of channels (signals, layouts) and what is decided (the plan, its
edits and folds), as frozen records with their JSON. It imports torch tensors and ``snello.errors``;
no ``torch.nn``, no mutation. A new kind of edit is one record in ``edits.py``; it needs an applier
in ``rewrite/appliers.py``.
"""

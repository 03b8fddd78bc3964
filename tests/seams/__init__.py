"""The private names that tests use: one file per station, one sentence why for each name.

No other test imports a private module; ``test_architecture.py`` checks it. A law that public names
can state needs no seam, and a name that users need becomes public instead.
"""

"""Callbacks that run snello inside other libraries' training loops.

Each callback builds objects of the public API, calls them from the training loop and saves their
state in the library's own checkpoints. [`snello.integrations.lightning`][] needs the extra
`train`, [`snello.integrations.huggingface`][] the extra `huggingface`; neither is imported
before its first use.
"""

__all__: list[str] = []

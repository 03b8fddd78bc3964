"""Random draws of curation: functions of a seed and a purpose, apart from the global generator."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator on the CPU whose draws depend on the seed and the purpose alone."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    # torch takes seeds of 64 bits with a sign
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))

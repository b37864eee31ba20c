"""One stream of random numbers per draw, and fingerprints of what results depend on."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def generator(seed: int, *stream: int | str) -> np.random.Generator:
    """Return a generator of its own for ``(seed, *stream)``; equal arguments give equal draws."""
    words = [
        part if isinstance(part, int) else _word(part) for part in (len(stream), seed, *stream)
    ]  # the length: trailing zeros count
    return np.random.default_rng(words)


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def fingerprint(*parts: object) -> str:
    """Return a sha256 hex digest of ``parts``: arrays by dtype, shape and bytes, the rest as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()

"""Seeds from counters: what happens at (seed, epoch, batch, ...) depends on nothing that happened before.

So a resumed run draws what the uninterrupted one would have drawn, with no generator's state to save.
"""

import hashlib


def derive(*keys: int) -> int:
    """A 63-bit seed from integers; a change in any of them changes it all."""
    digest = hashlib.blake2b(",".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1

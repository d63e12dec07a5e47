"""One seed for the run, and every other seed derived from it by name."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers, e.g. `derive_seed(run_seed, "sample", step, i)`.

    Independent of process, platform and Python's hash randomisation.
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

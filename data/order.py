"""Order: a keyed permutation of 0 .. n-1 that is computed, not stored.

A Feistel network permutes the numbers of the smallest even number of bits that holds n. It is
applied again until the result is below n (Black & Rogaway, "Ciphers with Arbitrary Finite Domains",
CT-RSA 2002). Any entry of an order of any size takes microseconds, and there is no state to save.
"""

import hashlib
from dataclasses import dataclass

ROUNDS = 6


@dataclass(frozen=True)
class Permutation:
    """A permutation of [0, size). Different keys give unrelated permutations.

    Attributes:
      size: n >= 1.
      key: at most 64 bytes.
    """

    size: int
    key: bytes

    def __getitem__(self, index: int) -> int:
        """The entry at `index`, 0 <= index < size."""
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        mask = (1 << half) - 1
        value = index
        while True:
            left, right = value >> half, value & mask
            for number in range(ROUNDS):
                message = number.to_bytes(1, "little") + right.to_bytes(16, "little")
                digest = hashlib.blake2b(message, key=self.key, digest_size=16).digest()
                left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
            value = left << half | right
            if value < self.size:
                return value


def key(*parts: int | str) -> bytes:
    """A key for `Permutation`, made from the values that the order depends on."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()

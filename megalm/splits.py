"""Which of train, valid and test a document is in: by its text alone, the same wherever it is asked."""

import hashlib
from fractions import Fraction

from megalm.errors import UserError

SPLITS = ("train", "valid", "test")


def split_limits(splits: str) -> list[int]:
    """Return the upper limits of a 64-bit hash for train, valid and test, from shares such as "98,1,1".

    Raises UserError unless there are one to three shares, none negative, not all zero.
    """
    try:
        shares = [Fraction(part.strip()) for part in splits.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not 1 <= len(shares) <= len(SPLITS) or min(shares) < 0 or not sum(shares):
        raise UserError(f"splits is '{splits}'; give the shares of train, valid and test, such as 98,1,1")
    shares += [Fraction(0)] * (len(SPLITS) - len(shares))
    return [int(sum(shares[: i + 1]) / sum(shares) * 2**64) for i in range(len(SPLITS))]


def split_of(text: bytes, limits: list[int]) -> int:
    """The number of the split, by a hash of the text (UTF-8), so that copies of a document never lie on both sides."""
    value = hash64(text)
    return next(i for i, limit in enumerate(limits) if value < limit)


def hash64(data: bytes) -> int:
    """A 64-bit hash (BLAKE2b) that is the same in every process and release."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

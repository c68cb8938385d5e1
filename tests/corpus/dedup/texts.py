"""Texts whose similarity is known because they were made that way."""

import random


def random_text(rng: random.Random, words: int) -> str:
    """So many words that no other text has."""
    return " ".join(f"w{rng.getrandbits(60):x}" for _ in range(words))


def pair_of_similarity(rng: random.Random, common: int, different: int) -> tuple[str, str]:
    """Two texts whose sets of words have Jaccard similarity common / (common + 2 different)."""
    shared = random_text(rng, common)
    return f"{shared} {random_text(rng, different)}", f"{shared} {random_text(rng, different)}"

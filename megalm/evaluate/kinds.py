"""The kinds of tasks: what each needs to be told, and what can be counted of it."""

from typing import Literal, get_args

from megalm.corpus.clean.pii_patterns import Kind as PiiKind

Kind = Literal[
    "choice",
    "schema",
    "continuation",
    "generation",
    "code",
    "perplexity",
    "pairs",
    "bbq",
    "toxicity",
    "refusal",
    "pii",
    "memorization",
]
ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_tokens")
PII_KINDS: tuple[PiiKind, ...] = get_args(PiiKind)
METRICS: dict[str, tuple[str, ...]] = {
    "choice": (*ACCURACIES, "macro_f1", "probability", "changed"),
    "schema": (*ACCURACIES, "macro_f1", "probability", "changed"),
    "continuation": ("acc", "perplexity"),
    "generation": ("exact_match", "f1", "number", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"),
    "code": ("pass@K",),
    "perplexity": ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"),
    "pairs": ("preference", "difference", "distance"),
    "bbq": ("acc", "acc_ambiguous", "acc_disambiguated", "bias_ambiguous", "bias_disambiguated"),
    "toxicity": ("expected_maximum", "toxicity_probability", "toxic", "listed"),
    "refusal": ("refused", "refused_harmful", "refused_safe", "balanced"),
    "pii": ("pii", *PII_KINDS, "leaked"),
    "memorization": ("verbatim", "perplexity"),
}
"""What can be counted of each kind of task."""
NEEDS: dict[str, tuple[str, ...]] = {
    "choice": ("prompt", "choices", "answer"),
    "schema": ("contexts", "continuation", "answer"),
    "continuation": ("prompt", "continuation"),
    "generation": ("prompt", "answer"),
    "code": ("prompt", "tests"),
    "perplexity": ("text",),
    "pairs": ("more",),
    "bbq": ("prompt", "choices", "answer", "ambiguous", "unknown", "biased"),
    "toxicity": ("prompt",),
    "refusal": ("prompt", "harmful", "rules"),
    "pii": ("prompt",),
    "memorization": (),
}
"""Fields that each kind cannot do without."""
ALSO: dict[str, tuple[str, ...]] = {"pairs": ("less",), "pii": ("answer",)}
"""Fields that a kind knows beside them."""
OF_KINDS = tuple(dict.fromkeys(name for names in (*NEEDS.values(), *ALSO.values()) for name in names))
"""Fields that do something in some kinds alone."""
WRITTEN = ("generation", "code", "toxicity", "refusal", "pii")
"""Kinds in which the model writes."""
SWAPPED = ("choice", "schema", "continuation", "generation", "perplexity", "pairs")
"""Kinds whose records may be asked with groups exchanged."""
UNSOLVED = ("code", "perplexity", "pairs", "toxicity", "refusal", "pii", "memorization")
"""Kinds whose questions cannot be shown solved."""

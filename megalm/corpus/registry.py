"""Which class stands behind a step's name in a recipe; each is imported when a recipe names it."""

from importlib import import_module
from typing import TYPE_CHECKING

from megalm.config.suggest import nearest
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.corpus.step import Collective, Step

STEPS = {
    "decontaminate": "megalm.corpus.decontaminate.step:Decontaminate",
    "duplicate_lines": "megalm.corpus.dedup.lines:DuplicateLines",
    "exact_duplicates": "megalm.corpus.dedup.steps:ExactDuplicates",
    "representation": "megalm.corpus.bias.representation:Representation",
    "representation_filter": "megalm.corpus.bias.filter:RepresentationFilter",
    "representation_balance": "megalm.corpus.bias.balance:RepresentationBalance",
    "counterfactual": "megalm.corpus.bias.counterfactual:Counterfactual",
    "mix": "megalm.corpus.mix.step:Mix",
    "near_duplicates": "megalm.corpus.dedup.steps:NearDuplicates",
    "length": "megalm.corpus.length:LengthFilter",
    "url_blocklist": "megalm.corpus.clean.url_rules:UrlBlocklist",
    "url_words": "megalm.corpus.clean.url_rules:UrlWords",
    "extract": "megalm.corpus.clean.extract:Extract",
    "normalize": "megalm.corpus.clean.normalize:Normalize",
    "language": "megalm.corpus.clean.language:Language",
    "gopher_quality": "megalm.corpus.clean.gopher_quality:GopherQuality",
    "gopher_repetition": "megalm.corpus.clean.gopher_repetition:GopherRepetition",
    "c4": "megalm.corpus.clean.c4:C4",
    "fineweb": "megalm.corpus.clean.fineweb:FineWeb",
    "symbol_lines": "megalm.corpus.clean.symbols:SymbolLines",
    "symbols": "megalm.corpus.clean.symbols:Symbols",
    "rare_words": "megalm.corpus.clean.rare_words:RareWords",
    "bad_words": "megalm.corpus.clean.bad_words:BadWords",
    "pii": "megalm.corpus.clean.pii:Pii",
    "quality_classifier": "megalm.corpus.classify.steps:QualityClassifier",
    "toxicity_classifier": "megalm.corpus.classify.steps:ToxicityClassifier",
}


def step_class(name: str) -> "type[Step] | type[Collective]":
    """The class of the step `name`; raises UserError for a name that is not known."""
    if name not in STEPS:
        raise UserError(f"unknown step `{name}`{nearest(name, STEPS)} (known: {', '.join(sorted(STEPS))})")
    module, _, attribute = STEPS[name].partition(":")
    return getattr(import_module(module), attribute)

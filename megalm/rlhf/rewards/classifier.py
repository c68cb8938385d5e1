"""Reward by a small text classifier, the kind that cleans corpora."""

from megalm.config.rewards import ClassifierConfig
from megalm.errors import UserError
from megalm.rlhf.rewards.base import Rule, Sample


class ClassifierReward(Rule):
    """The probability of a label, 0 to 1."""

    def __init__(self, config: ClassifierConfig) -> None:
        """Map the classifier's file; UserError where it is none or lacks the label."""
        try:
            from megalm.corpus.classify.model import Classifier
            from megalm.corpus.words import Split
        except ImportError as error:
            raise UserError(
                f"reward `{config.title}` needs a package that is not installed ({error}): pip install 'megalm[corpus]'"
            ) from None
        self.with_prompt = config.with_prompt
        self.tokens = lambda text: Split(text).tokens
        self.classifier = Classifier.load(config.path)
        self.label = self.classifier.choose_label(config.class_label)

    def judge(self, sample: Sample) -> float:
        """See Rule."""
        text = f"{sample.prompt}\n{sample.response}" if self.with_prompt else sample.response
        return self.classifier.score(self.tokens(text), self.label)

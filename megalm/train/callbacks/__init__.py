"""What a run reports while it trains: a callback a file, and the list of those that a configuration asks for."""

from megalm.config.rlhf import RL_TASKS
from megalm.config.schema import Config
from megalm.train.callbacks.base import Callback, Run, StepRecord, Validation
from megalm.train.callbacks.classification import ClassificationReport
from megalm.train.callbacks.metrics import MetricsFile
from megalm.train.callbacks.plot import LearningCurve
from megalm.train.callbacks.preferences import RewardReport
from megalm.train.callbacks.progress import Progress
from megalm.train.callbacks.tensorboard import TensorBoard
from megalm.train.callbacks.throughput import Throughput

__all__ = ["Callback", "Run", "StepRecord", "Validation", "standard_callbacks"]


def standard_callbacks(config: Config) -> list[Callback]:
    """The callbacks that `config.logging` asks for, those first whose values the others write."""
    callbacks: list[Callback] = [MetricsFile()]
    if config.task not in RL_TASKS:  # where a step is more than training
        callbacks.insert(0, Throughput())
    if config.task == "classify":
        callbacks.insert(0, ClassificationReport())
    if config.task == "reward":
        callbacks.insert(0, RewardReport())
    if config.logging.tensorboard:
        callbacks.append(TensorBoard())
    if config.logging.progress:
        callbacks.append(Progress())
    if config.logging.plot:
        callbacks.append(LearningCurve())
    return callbacks

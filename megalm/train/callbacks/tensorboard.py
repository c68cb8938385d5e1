"""Writes TensorBoard events under RUN_DIR/tensorboard."""

from typing import TYPE_CHECKING

from megalm.train.callbacks.base import Answer, Callback, Run, StepRecord, Validation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10
ANSWERS = 16  # of a validation: its page shows all of them at once


class TensorBoard(Callback):
    """On rank 0 the scalars of every `logging.interval`-th step, validations, and events as text.

    Steps that come again, after a resume or a rollback, replace the earlier ones (`purge_step`).
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._last_step = 0

    def on_start(self, run: Run) -> None:
        if run.layout.rank == 0:
            self._open(run, run.step)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self._writer is None:
            return
        if record.step <= self._last_step:
            self._writer.close()
            self._open(run, record.step - 1)
        self._last_step = record.step
        if record.step % run.config.logging.interval == 0:
            metrics = record.metrics
            train = {"loss": metrics.loss, "grad_norm": metrics.grad_norm, "lr": record.lr}
            train |= metrics.more
            self._write({f"train/{name}": value for name, value in train.items()}, record.step)
            self._write({f"throughput/{name}": value for name, value in record.values.items()}, record.step)

    def on_validation(self, run: Run, validation: Validation) -> None:
        if self._writer is not None:
            self._write({f"valid/{name}": value for name, value in validation.values.items()}, run.step)
            for number, answer in enumerate(validation.answers[:ANSWERS]):
                self._writer.add_text(f"samples/{number}", _markdown(answer), run.step)
            self._writer.flush()

    def on_event(self, run: Run, message: str) -> None:
        if self._writer is not None:
            self._writer.add_text("events", message, run.step)

    def on_end(self, run: Run) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and one rank alone needs it

        self._last_step = step
        directory = run.directory / "tensorboard"
        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=FLUSH_SECONDS)

    def _write(self, values: dict[str, float], step: int) -> None:
        assert self._writer is not None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)


def _markdown(answer: Answer) -> str:
    """Prompt, answer and references as blocks of plain text, so that nothing in them is taken for markup."""
    parts = {"prompt": answer.prompt, "answer": answer.text, "reference": "\n\n".join(answer.references)}
    blocks = (
        f"**{name}**\n\n" + "    " + text.replace("\n", "\n    ") for name, text in parts.items() if text
    )
    return "\n\n".join(blocks)

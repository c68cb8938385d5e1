"""Has the model answer prompts at validations: RUN_DIR/samples.jsonl, and measures against references."""

import json

from megalm.config.schema import Config
from megalm.engine.base import Engine
from megalm.evaluate.metrics import text_metrics
from megalm.generate.decode import Generator, context_length
from megalm.generate.rows import Completion
from megalm.generate.share import generate_shared
from megalm.run_files import SAMPLES as FILE_NAME
from megalm.tokenizer import Tokenizer
from megalm.train.callbacks.base import Answer, Callback, Run, StepRecord, Validation
from megalm.train.callbacks.metrics import keep_lines
from megalm.train.samples import Prompts


class Samples(Callback):
    """Generates on all ranks, under the layout of the training; rank 0 writes a line a prompt, with step and answer.

    Comes before the callbacks that write down a validation: it adds the answers and `samples.metrics` to it. Each step
    stands in the file once, also after a resume or a rollback. Neither weights nor batches nor dropout notice.
    """

    def __init__(self, engine: Engine, generator: Generator, prompts: Prompts) -> None:
        self._engine = engine
        self._generator = generator
        self._prompts = prompts
        self._last_step = 0

    def on_start(self, run: Run) -> None:
        self._forget(run, run.step or -1)  # a run from the beginning may answer before its first step

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step <= self._last_step:
            self._forget(run, record.step - 1)
        self._last_step = record.step

    def on_validation(self, run: Run, validation: Validation) -> None:
        train, samples = run.config.train, run.config.samples
        if run.step != train.steps and run.step // train.eval_interval % samples.every:
            return
        self._engine.gather_weights()
        prompts = self._prompts.prompts
        completions = generate_shared(
            self._generator, [prompt.ids for prompt in prompts], self._prompts.options
        )
        self._generator.forget()  # training wants the memory, and changes the weights
        texts = [completion.text.strip() for completion in completions]
        if samples.metrics:
            references = [prompt.references for prompt in prompts]
            validation.values |= text_metrics(samples.metrics, texts, references)
        validation.answers += [
            Answer(prompt.text, text, prompt.references) for prompt, text in zip(prompts, texts, strict=True)
        ]
        if run.layout.rank == 0:
            self._write(run, completions)

    def _write(self, run: Run, completions: list[Completion]) -> None:
        with open(run.directory / FILE_NAME, "a", encoding="utf-8") as file:
            for prompt, completion in zip(self._prompts.prompts, completions, strict=True):
                line = {"step": run.step, "prompt": prompt.text, "answer": completion.text}
                line |= {"references": prompt.references} if prompt.references else {}
                line |= {"tokens": len(completion.tokens), "finish_reason": completion.finish_reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _forget(self, run: Run, step: int) -> None:
        """Drop what a run that is gone back on wrote after `step`."""
        self._last_step = step
        if run.layout.rank == 0:
            keep_lines(run.directory / FILE_NAME, lambda line: line["step"] <= step)


def answering(
    engine: Engine, config: Config, tokenizer: Tokenizer | None, prompts: Prompts | None
) -> list[Callback]:
    """The callback that answers `prompts`, if there are any."""
    if prompts is None:
        return []
    generator = Generator(
        engine.chunks,
        engine.layout,
        context_length(config),
        tokenizer,
        max_rows=config.samples.batch_size,
    )
    return [Samples(engine, generator, prompts)]

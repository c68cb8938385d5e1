"""Has the model answer prompts at validations: RUN_DIR/samples.jsonl, and measures against references."""

from typing import Any

from megalm.config.schema import Config
from megalm.engine.base import Engine
from megalm.evaluate.metrics import text_metrics
from megalm.generate.decode import Generator, context_length
from megalm.generate.rows import Completion
from megalm.generate.share import generate_shared
from megalm.run_files import SAMPLES as FILE_NAME
from megalm.tokenizer import Tokenizer
from megalm.train.callbacks.base import Answer, Callback, Run, Validation
from megalm.train.callbacks.step_file import StepFile
from megalm.train.samples import Prompt, Prompts


class Samples(StepFile):
    """Generates on all ranks, under the layout of the training; rank 0 writes a line a prompt, with step and answer.

    Comes before the callbacks that write down a validation: it adds the answers and `samples.metrics` to it. Neither weights nor batches nor dropout notice.
    """

    def __init__(self, engine: Engine, generator: Generator, prompts: Prompts) -> None:
        super().__init__(FILE_NAME)
        self._engine = engine
        self._generator = generator
        self._prompts = prompts

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
        self.append(run, map(_line, prompts, completions))


def _line(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    line: dict[str, Any] = {"prompt": prompt.text, "answer": completion.text}
    line |= {"references": prompt.references} if prompt.references else {}
    return line | {"tokens": len(completion.tokens), "finish_reason": completion.finish_reason}


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

"""Converted models of every family write what Hugging Face's `generate` writes, greedily and by beam search."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megalm.generate.request import GenerationOptions
from tests.convert.hub import LENGTH, MODELS, VOCABULARY, make, save
from tests.worlds import in_world

DECODERS = [name for name, (family, _) in MODELS.items() if "Bert" not in family]
PROMPTS = [[3, 4, 5], [9] * 12, [20, 21, 22, 23, 24, 25]]
END = 2


@pytest.fixture(scope="module", params=DECODERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder: Path = tmp_path_factory.mktemp("hub")
    save(request.param, folder, initializer_range=0.3)
    return request.param, folder


class Ends:
    """What the engine asks of a tokenizer, where only its end of document matters."""

    eod_id = END
    vocab_size = VOCABULARY

    def stream(self) -> "Ends":
        return self

    def copy(self) -> "Ends":
        return self

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def generator(folder: Path) -> Any:
    from megalm.checkpoint import find_checkpoint, load_weights, read_config
    from megalm.convert.hugging_face import from_hugging_face
    from megalm.engine.build import build_engine
    from megalm.generate.decode import Generator
    from megalm.parallel.layout import create_layout

    run = folder / "run"
    if not run.exists():
        from_hugging_face(folder, run, compare=False)
    checkpoint = find_checkpoint(run)
    config = read_config(checkpoint)
    config.precision.dtype = "fp64"
    layout = create_layout(config.parallel)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, checkpoint)
    return Generator(engine.chunks, layout, LENGTH, Ends())  # type: ignore[arg-type]


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": -1.0, "early_stopping": True},
    {"num_beams": 2, "repetition_penalty": 1.5},
    {"num_beams": 4, "num_return_sequences": 4, "repetition_penalty": 1.4, "length_penalty": 0.6},
    {"num_beams": 4, "num_return_sequences": 4, "repetition_penalty": 0.8, "length_penalty": 1.7},
]


@in_world(1)
def test_texts_equal_hugging_face(family: tuple[str, Path]) -> None:
    name, folder = family
    theirs = make(name, torch.float64, initializer_range=0.3)
    if name == "mixtral":  # its grouped matmul takes no float64
        theirs.set_experts_implementation("eager")
    ours = generator(folder)
    ended = 0
    for search in SEARCHES:
        options = GenerationOptions(
            greedy=True,
            max_new_tokens=14,
            beams=search.get("num_beams", 1),
            n=search.get("num_return_sequences", 1),
            length_penalty=search.get("length_penalty", 1.0),
            early_stopping=search.get("early_stopping", False),
            repetition_penalty=search.get("repetition_penalty", 1.0),
            logit_bias={END: 2.0},
        )
        found = iter(ours.generate(PROMPTS, options))
        for prompt in PROMPTS:
            output = theirs.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=14,
                pad_token_id=0,
                sequence_bias={(END,): 2.0},
                return_dict_in_generate=True,
                output_scores=True,
                **search,
            )
            worth = iter(output.sequences_scores.tolist() if options.beams > 1 else [])
            for row in output.sequences[:, len(prompt) :].tolist():
                length = row.index(END) + 1 if END in row else len(row)
                completion = next(found)
                assert completion.tokens == row[:length], search
                assert completion.finish_reason == ("stop" if END in row else "length")
                if options.beams > 1:  # theirs in float32
                    assert completion.score == pytest.approx(next(worth), rel=1e-5)
                ended += END in row
    assert ended, "beams that end early are the difficult case"

"""`megalm embed`: the mean of an encoder's last hidden states, the same under every layout and batch size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.request import EmbedRequest, GenerateRequest
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.bert_text import write_bert_data
from tests.tiny import tiny_config, tiny_engine

TEXTS = ["the sea of woods", "winter", "", "the harbour of rivers. the garden of stones", "the sea of woods"]
LONG = "the mountain of evenings. " * 30


def config_of(vocabulary: int, *overrides: str) -> Config:
    size = f"model.vocab_size={vocabulary}"
    return tiny_config("bert-tiny", "task=mlm", size, "model.init_method_std=0.2", *overrides)


def save_random_model(directory: Path, vocabulary: int) -> None:
    """A checkpoint as training leaves it; its configuration names another seed than its weights come from."""
    from megalm.checkpoint import CheckpointWriter

    engine = tiny_engine(config_of(vocabulary, "run.seed=77"))
    config = config_of(vocabulary, "checkpoint.async_save=false")
    CheckpointWriter(directory, config, engine).save(7, {"step": 7, "counters": engine.counters})


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("run")
    write_bert_data(directory)
    (directory / "tokenizer").mkdir()
    (directory / "vocab.txt").rename(directory / "tokenizer" / "vocab.txt")
    run_distributed(save_random_model, 1, directory, load_tokenizer(directory / "tokenizer").vocab_size)
    return directory


def embed(directory: Path, changes: dict, output: Path | None = None) -> dict:
    from megalm.generate import embed as command

    request = EmbedRequest(**({"checkpoint": str(directory), "texts": TEXTS, "dtype": "fp64"} | changes))
    return command.main(request, output)


def in_one_process(directory: Path, output: Path | None = None, **changes) -> np.ndarray:
    return np.array(run_distributed(embed, 1, directory, changes, output)[0]["embeddings"])


def hidden_means(directory: Path) -> np.ndarray:
    """By hand: each text alone, without padding."""
    from megalm.generate.load import open_model

    engine, _, tokenizer = open_model(
        EmbedRequest(checkpoint=str(directory), texts=["-"], dtype="fp64"), "bert"
    )
    cls, sep = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
    engine.model.eval()
    with torch.no_grad():
        rows = [torch.tensor([[cls, *tokenizer.encode(text), sep]]) for text in TEXTS]
        return torch.cat([engine.model(row, heads=False).mean(0) for row in rows]).numpy()


def test_vectors_are_the_mean_over_the_texts_own_tokens(run_directory: Path) -> None:
    expected = run_distributed(hidden_means, 1, run_directory)[0]
    found = in_one_process(run_directory, normalize=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_array_equal(found[0], found[4])
    unit = in_one_process(run_directory)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize(("tensor", "pipeline", "world_size"), [(1, 1, 2), (2, 1, 2), (1, 2, 2)])
def test_layout_and_batches_do_not_change_the_vectors(
    run_directory: Path, tensor: int, pipeline: int, world_size: int, batch_size: int
) -> None:
    changes = {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "batch_size": batch_size,
    }
    results = run_distributed(embed, world_size, run_directory, changes, None)
    assert all(result == results[0] for result in results)
    np.testing.assert_allclose(results[0]["embeddings"], in_one_process(run_directory), rtol=0, atol=1e-6)


def test_texts_are_cut_to_the_models_length_and_counted(run_directory: Path) -> None:
    result = run_distributed(embed, 1, run_directory, {"texts": [LONG, "winter"]}, None)[0]
    assert result["truncated"] == 1
    longer = run_distributed(embed, 1, run_directory, {"texts": [LONG + LONG, "winter"]}, None)[0]
    assert longer["embeddings"] == result["embeddings"]


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.json"])
def test_vectors_are_written(run_directory: Path, tmp_path: Path, name: str) -> None:
    expected = in_one_process(run_directory, tmp_path / name)
    read = np.load if name.endswith("npy") else lambda path: np.array(json.loads(path.read_text()))
    found = read(tmp_path / name)
    np.testing.assert_array_equal(found, expected)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_mistakes_are_named(run_directory: Path, tmp_path: Path) -> None:
    from megalm.generate.load import open_model

    with pytest.raises(UserError, match="no text given"):
        EmbedRequest(checkpoint="x", texts=[])
    with pytest.raises(UserError, match=r"must end in \.npy or \.json"):
        embed(run_directory, {}, tmp_path / "vectors.txt")
    with pytest.raises(UserError, match="architecture `bert`: use `megalm embed`"):
        open_model(GenerateRequest(checkpoint=str(run_directory), prompts=["x"]), "gpt")

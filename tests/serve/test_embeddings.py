"""An encoder's vectors through OpenAI's client are those of `megalm embed`; what writes texts makes none."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from megalm.generate.request import EmbedRequest
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.bert_text import write_bert_data
from tests.generate.test_embed import save_random_model
from tests.serve.servers import Server, serving

pytestmark = pytest.mark.timeout(300)
TEXTS = ["the sea of woods", "winter", "", "the harbour of rivers"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("encoder")
    write_bert_data(directory)
    (directory / "tokenizer").mkdir()
    (directory / "vocab.txt").rename(directory / "tokenizer" / "vocab.txt")
    run_distributed(save_random_model, 1, directory, load_tokenizer(directory / "tokenizer").vocab_size)
    return directory


@pytest.fixture(scope="module")
def both(run: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two models."""
    models = [{"checkpoint": str(run), "name": "writer"}, {"checkpoint": str(encoder), "name": "encoder"}]
    folder = tmp_path_factory.mktemp("both")
    policy = folder / "policy.yaml"
    policy.write_text(
        "categories: {a: {input: block, words: [forbidden]}, b: {input: mask, words: [hidden], mask: winter}}"
    )
    with serving(folder, models=models, moderation=str(policy)) as server:
        yield server


def embed(directory: str, texts: list[str]) -> list[list[float]]:
    from megalm.generate.embed import main

    found: list[list[float]] = main(EmbedRequest(checkpoint=directory, texts=texts))["embeddings"]
    return found


def test_vectors_are_the_encoders(both: Server, encoder: Path) -> None:
    client = openai.OpenAI(base_url=both.api, api_key="none", max_retries=0)
    wanted = np.array(run_distributed(embed, 1, str(encoder), TEXTS)[0])
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model="encoder", input=TEXTS, encoding_format=encoding)
        vectors = [
            np.frombuffer(base64.b64decode(one.embedding), "<f4") if encoding == "base64" else one.embedding
            for one in found.data
        ]
        np.testing.assert_allclose(np.array(vectors), wanted, atol=1e-5)
    ids = load_tokenizer(encoder / "tokenizer").encode(TEXTS[0])
    alone = client.embeddings.create(model="encoder", input=ids)
    np.testing.assert_allclose(alone.data[0].embedding, wanted[0], atol=1e-5)
    assert alone.usage.prompt_tokens == alone.usage.total_tokens == len(ids)


def test_each_model_is_asked_what_it_can_do(both: Server) -> None:
    client = openai.OpenAI(base_url=both.api, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list().data] == ["writer", "encoder"]
    with pytest.raises(openai.BadRequestError, match="ask /v1/embeddings"):
        client.completions.create(model="encoder", prompt="the")
    with pytest.raises(openai.BadRequestError, match="makes no vectors"):
        client.embeddings.create(model="writer", input="the")
    with pytest.raises(openai.BadRequestError, match="shorten it"):
        client.embeddings.create(model="encoder", input="the mountain of evenings. " * 200)
    with pytest.raises(openai.BadRequestError, match="at most 256"):
        client.embeddings.create(model="encoder", input=["a"] * 257)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="encoder", input="the", dimensions=2)
    assert client.completions.create(model="writer", prompt="the", max_tokens=2).choices[0].text is not None


def test_texts_are_checked_before_vectors_are_made(both: Server) -> None:
    client = openai.OpenAI(base_url=both.api, api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as told:
        client.embeddings.create(model="encoder", input=["the sea", "FORBIDDEN"])
    assert told.value.code == "content_filter"
    found = client.embeddings.create(model="encoder", input=["the hidden", "the winter", "the sea"])
    masked, wanted, other = (one.embedding for one in found.data)
    assert masked == wanted != other

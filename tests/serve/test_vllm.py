"""vLLM as what runs a served model: where it is not installed one line says so, where it is its greedy texts are ours."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from megalm.generate.request import GenerationOptions
from megalm.serve.vllm import parameters_of
from tests.serve.servers import Server, serving

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_options_are_told_in_vllms_words() -> None:
    told = parameters_of(
        GenerationOptions(max_new_tokens=7, temperature=0.5, top_p=0.9, min_p=0.1, n=3, seed=4, logprobs=2),
        11,
    )
    assert told == {
        "n": 3,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "seed": 4,
        "stop_token_ids": [11],
        "logprobs": 2,
        "prompt_logprobs": None,
    }
    greedy = parameters_of(GenerationOptions(greedy=True, max_new_tokens=0, prompt_logprobs=0), 11)
    assert (greedy["temperature"], greedy["max_tokens"], greedy["prompt_logprobs"]) == (0.0, 1, 0)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_one_line_says_what_to_do(run: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "megalm", "serve", str(run), "--port", "0", "--backend", "vllm"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("megalm: error: ")]
    assert "--backend vllm needs vLLM" in line and "pip install vllm" in line


@pytest.mark.skipif(not HAS_VLLM, reason="needs vLLM: pip install vllm")
def test_greedy_texts_are_ours(run: Path, server: Server, tmp_path: Path) -> None:
    body = {"model": "tiny", "prompt": ["the ", "a man and"], "temperature": 0, "max_tokens": 20}
    models = [{"checkpoint": str(run), "name": "tiny", "backend": "vllm"}]
    with serving(tmp_path, models=models) as other, other.client() as theirs, server.client() as ours:
        found, wanted = (client.post("/v1/completions", json=body).json() for client in (theirs, ours))
    texts = [[choice["text"] for choice in answer["choices"]] for answer in (found, wanted)]
    assert texts[0] == texts[1]

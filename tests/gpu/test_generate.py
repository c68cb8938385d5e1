"""On a CUDA device recorded decoding steps write what whole forward passes of the training model write; skipped without a device."""

import pytest
import torch

from megalm.config import parse_config
from megalm.generate.request import GenerationOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PROMPTS = [[1, 2, 3], [5] * 17, [7, 8, 9, 10, 11], [400]]


def generator(preset: str, **keywords):
    from megalm.generate.decode import Generator
    from megalm.model.build import build_model
    from megalm.parallel.layout import create_layout

    config = parse_config(
        {
            "model": {
                "preset": preset,
                "vocab_size": 509,
                "max_sequence_length": 600,
                "init_method_std": 0.2,
            },
            "precision": {"dtype": "fp64"},
        }
    )
    layout = create_layout(config.parallel)
    return Generator([build_model(config, layout)], layout, 600, **keywords)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny", "mixtral-tiny"])
def test_greedy_texts_equal_whole_forward_passes(preset):
    ours = generator(preset)
    found = ours.generate(PROMPTS, GenerationOptions(greedy=True, max_new_tokens=300))
    assert (ours._graphs is None) == (preset == "mixtral-tiny")
    network = ours.chunks[0].eval()
    for prompt, row in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits_SV = network(torch.tensor([prompt + row.tokens], device="cuda"))[0]
        assert logits_SV[len(prompt) - 1 : -1].argmax(-1).tolist() == row.tokens


def test_recorded_steps_write_what_steps_without_recording_write():
    recorded = generator("llama-tiny")
    plain = generator("llama-tiny")
    plain._graphs = None
    options = GenerationOptions(max_new_tokens=100, n=3, temperature=1.3, top_p=0.9)
    assert recorded.generate(PROMPTS, options) == plain.generate(PROMPTS, options)

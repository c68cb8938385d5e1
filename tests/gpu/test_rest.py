"""On a CUDA device a frozen engine's weights leave its memory and come back as they were; skipped without a device."""

import pytest
import torch

from megalm.config import parse_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def frozen_engine():
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    config = parse_config(
        {
            "model": {"preset": "llama-tiny", "vocab_size": 509, "hidden_size": 512, "tie_embeddings": True},
            "precision": {"dtype": "bf16"},
        }
    )
    return build_engine(config, create_layout(config.parallel), train=False)


def test_weights_leave_the_device_and_come_back_as_they_were():
    from megalm.engine.rest import Resting

    engine = frozen_engine()
    tokens_BS = torch.randint(509, (2, 32), device="cuda")
    with torch.no_grad():
        before = engine.model.eval()(tokens_BS)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    size = sum(parameter.nbytes for parameter in engine.model.parameters())
    rest = Resting(engine)
    rest.offload()
    assert held - torch.cuda.memory_allocated() >= size
    assert all(p.device.type == "cpu" and p.is_pinned() for p in engine.model.parameters())
    with rest.awake(), torch.no_grad():
        assert torch.equal(engine.model(tokens_BS), before)
        for parameter in engine.model.parameters():
            parameter.mul_(2)  # new weights must not be lost
    with rest.awake(), torch.no_grad():
        doubled = [parameter.clone() for parameter in engine.model.parameters()]
    rest.onload()
    assert all(torch.equal(p, d) for p, d in zip(engine.model.parameters(), doubled, strict=True))
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.div_(2)
        assert torch.equal(engine.model(tokens_BS), before)

"""Log-probabilities of continuations equal those read off the model's logits, whatever shares a row with them."""

from pathlib import Path

import pytest

from megalm.errors import UserError
from megalm.evaluate.encode import Encoder, Likelihood, Pair
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.evaluate.small import config_of
from tests.tiny import random_tokens
from tests.worlds import in_world

LENGTH = 24
IDS = tuple(random_tokens(1, 400, seed=3)[0].tolist())
PAIRS = [
    Pair(IDS[:5], IDS[5:9]),
    Pair(IDS[:8], IDS[8:9]),  # the same tokens, cut elsewhere
    Pair(IDS[:8], (7,)),  # and with another last one
    Pair(IDS[:5], IDS[5:9]),  # once more
    Pair(IDS[:1], IDS[1:2]),
    Pair(IDS[:20], IDS[20:40]),  # too long: its beginning is left out
    Pair(IDS[:3], IDS[3:60]),  # and with it some of what is asked for
    *(Pair(IDS[n : n + 2], IDS[n + 2 : n + 20]) for n in range(20)),
    *(Pair(IDS[60:66], IDS[n : n + n % 7 + 1]) for n in range(30)),  # more than fit into a row
]


def plain(pair: Pair, *settings: str) -> Likelihood:
    """Off the logits of a model in this process."""
    import torch

    from tests.tiny import tiny_model

    model = tiny_model(config_of(509, *settings)).eval()
    ids = (pair.context + pair.continuation)[-(LENGTH + 1) :]
    count = min(len(pair.continuation), LENGTH)
    with torch.no_grad():
        logits_SV = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-count:]
    labels = torch.tensor(ids[-count:])
    total = logits_SV.gather(1, labels[:, None]).sum().item()
    return Likelihood(total, bool((logits_SV.argmax(-1) == labels).all()))


@pytest.mark.parametrize(
    ("positions", "batch_size"),
    [("learned", 1), ("learned", 4), ("learned", 64), ("rope", 64), ("alibi", 64), ("sinusoidal", 64)],
)
@in_world(1)
def test_each_pair_is_read_by_itself(positions: str, batch_size: int) -> None:
    import torch

    from megalm.evaluate.likelihood import likelihoods
    from tests.tiny import tiny_engine, tiny_model

    settings = ("run.seed=5", f"model.position_embedding={positions}")
    config = config_of(509, *settings)
    engine = tiny_engine(config)
    model = tiny_model(config).eval()
    with torch.no_grad():
        likeliest = int(model(torch.tensor([IDS[:6]]))[0, -1].argmax())
    pairs = [*PAIRS, Pair(IDS[:6], (likeliest,)), Pair(IDS[:6], ((likeliest + 1) % 509,))]
    found: list[tuple[int, Likelihood]] = []
    told: list[int] = []

    def keep(some: list[tuple[int, Likelihood]]) -> None:
        found.extend(some)
        told.append(len(some))

    likelihoods(engine, pairs, LENGTH, batch_size, keep)
    assert sorted(number for number, _ in found) == list(range(len(pairs)))
    assert len(told) > 1 or batch_size == 64
    for number, one in found:
        expected = plain(pairs[number], *settings)
        assert one.logprob == pytest.approx(expected.logprob, rel=1e-9)
        assert one.is_greedy == expected.is_greedy
    by_number = dict(found)
    assert by_number[len(pairs) - 2].is_greedy and not by_number[len(pairs) - 1].is_greedy


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("the end of the text, and of the hand\n" * 10)
    train_bpe([folder / "text.txt"], 280, folder / "tokenizer")
    return Encoder(load_tokenizer(folder / "tokenizer"))


def test_an_answer_is_cut_off_where_its_questions_own_tokens_end(encoder: Encoder) -> None:
    encode, end = encoder.tokenizer.encode, encoder.tokenizer.eod_id
    (plain_cut, spaces, empty, blank) = encoder.text_pairs(
        [("of the", " hand"), ("of the  ", "hand"), ("", " hand"), ("of the", "")]
    )
    assert plain_cut == (tuple(encode("of the")), tuple(encode(" hand")))
    assert spaces.context == tuple(encode("of the"))
    assert encoder.tokenizer.decode(spaces.continuation) == "  hand"
    assert empty == ((end,), tuple(encode(" hand")))
    assert blank.context + blank.continuation == tuple(
        encode("of the")
    )  # its last token is what is predicted
    # `the` is one token behind ` `: what follows `th` became part of it
    (merged,) = encoder.text_pairs([("of th", "e")])
    assert merged == (tuple(encode("of the")[:-1]), tuple(encode("of the")[-1:]))


def test_a_begin_token_stands_before_every_text(encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    (name,) = [name for name, number in tokenizer.special_tokens.items() if number == tokenizer.eod_id]
    begun = Encoder(tokenizer, begin=name)
    texts = [("of the", " hand"), ("", "of"), ("of th", "e")]
    for with_it, without in zip(begun.text_pairs(texts), encoder.text_pairs(texts), strict=True):
        own = () if with_it.context == (tokenizer.eod_id,) else (tokenizer.eod_id,)
        assert with_it == (own + without.context, without.continuation)
    assert begun.text("of") == (tokenizer.eod_id, *tokenizer.encode("of"))
    assert begun.document("of the hand", 4, 4) == encoder.document("of the hand", 4, 4)
    with pytest.raises(UserError, match="'<s>' is no token of the model's"):
        Encoder(tokenizer, begin="<s>")

"""Program that trains a SentencePiece model: the library runs in a process that can be ended at any time."""

import io
import json
import sys
from pathlib import Path

from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

from megalm.launch import die_with_parent
from megalm.tokenizer.load import SENTENCEPIECE_NAME
from megalm.tokenizer.training.kinds import Settings
from megalm.tokenizer.training.sentencepiece import (
    LONGEST_PIECE,
    LONGEST_WORD,
    PROBLEM_NAME,
    RULES,
    SEEDS,
    SEEDS_NAME,
    SETTINGS_NAME,
    TAB,
    THREADS,
    WORDS_NAME,
    normalizer,
)


def train(folder: Path) -> None:
    """Make the model of the words, seeds and settings in `folder`, and write it or the problem there."""
    settings = Settings(**json.loads((folder / SETTINGS_NAME).read_text()))
    normalizers = tuple(settings.normalizers)
    eod, unknown, *others = settings.special_tokens
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            input=str(folder / WORDS_NAME),
            input_format="tsv",
            model_writer=model,
            model_type="unigram" if settings.kind == "unigram" else "bpe",
            vocab_size=settings.vocab_size,
            hard_vocab_limit=False,
            seed_sentencepieces_file=str(folder / SEEDS_NAME) if settings.kind == "unigram" else "",
            seed_sentencepiece_size=SEEDS,
            max_sentencepiece_length=LONGEST_PIECE,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            split_digits=settings.pretokenizer == "digits",
            allow_whitespace_only_pieces=not normalizers,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=LONGEST_WORD,
            num_threads=THREADS,
            eos_id=0,
            eos_piece=eod,
            unk_id=1,
            unk_piece=unknown,
            bos_id=-1,
            pad_id=-1,
            control_symbols=others,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        # less the place in the library's source
        (folder / PROBLEM_NAME).write_text(" ".join(str(error).split()).rpartition("] ")[2])
        return
    # The words were normalized when they were counted; texts to encode are not.
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.getvalue())
    proto.normalizer_spec.ParseFromString(normalizer(RULES[normalizers]).serialized_normalizer_spec())
    for piece in proto.pieces:
        piece.piece = piece.piece.replace(TAB, "\t")
    for name in ("input", "seed_sentencepieces_file"):
        proto.trainer_spec.ClearField(name)
    (folder / SENTENCEPIECE_NAME).write_bytes(proto.SerializeToString(deterministic=True))


if __name__ == "__main__":
    die_with_parent()
    train(Path(sys.argv[1]))

"""A conversation sees its earlier turns, forgets the oldest where the context is full, and says the same on every layout."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from megalm.errors import UserError
from megalm.generate.request import ChatRequest, GenerationOptions
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.chat import load_chat_template
from tests.generate.test_run import TP2_SP, save_random_model
from tests.worlds import in_world

LONG = 16384


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("run")
    (directory / "text.txt").write_text("the end of the text, and of the hand\n" * 10, encoding="utf-8")
    tokenizer = train_bpe(
        [directory / "text.txt"], 290, directory / "tokenizer", special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    run_distributed(save_random_model, 2, directory, tokenizer.vocab_size)
    return directory


def conversation(directory: Path, context: int = 400, **options: Any) -> Any:
    from megalm.generate.chat import Conversation
    from megalm.generate.decode import Generator
    from tests.generate.test_run import config_of
    from tests.tiny import tiny_model

    tokenizer = load_tokenizer(directory / "tokenizer")
    config = config_of(tokenizer.vocab_size, f"model.max_sequence_length={context}")
    from megalm.parallel.layout import create_layout

    generator = Generator(
        [tiny_model(config)], create_layout(config.parallel), context, tokenizer, prefix_share=0.5
    )
    template = load_chat_template("chatml", tokenizer, config=directory / "tokenizer")
    settings = GenerationOptions(greedy=True, max_new_tokens=12, stop=template.end_of_turn())
    return Conversation(generator, template, settings, **options)


@in_world(1)
def test_each_answer_follows_from_all_messages_before(run_directory: Path) -> None:
    chat = conversation(run_directory, system="of the end")
    for said in ("the hand", "and the text"):
        before = [{"role": "system", "content": "of the end"}, *chat.messages]
        prompt = chat.template.encode(
            [*before, {"role": "user", "content": said}], add_generation_prompt=True
        ).ids
        pieces: list[str] = []
        done = chat.answer(said, lambda _, piece, into=pieces: into.append(piece))
        other = conversation(run_directory).generator.generate([prompt], chat.options)[0]
        assert done.tokens == other.tokens
        assert "".join(pieces) == done.text == chat.messages[-1]["content"]
    assert chat.generator.prefixes.hits >= 32, "the first turn is not read again"


@in_world(1)
def test_old_turns_leave_a_full_context_and_what_is_too_long_is_not_said(run_directory: Path) -> None:
    chat = conversation(run_directory, context=100, system="the end")
    for _ in range(6):
        chat.answer("the text of the hand, the end of the text")
    assert 0 < chat.forgotten < len(chat.messages) == 12
    assert chat.forgotten % 2 == 0
    before = list(chat.messages)
    with pytest.raises(
        UserError, match="context of 100 has room for 88 beside an answer: say it shorter, or"
    ):
        chat.answer("xyz " * 60)
    assert chat.messages == before
    chat.forget()
    assert not chat.messages and not chat.forgotten


def test_the_command_talks_line_by_line_on_one_and_two_ranks(run_directory: Path) -> None:
    command = [sys.executable, "-m", "megalm", "chat", str(run_directory), "--greedy", "--dtype", "fp64"]
    command += ["--chat-template", "chatml", "--max-new-tokens", "9"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""}
    said = "the end\n\n" + "xyz " * 400 + "\nof the text\n"
    texts = []
    for more in (["--json"], ["--json", "--nproc", "2", "--tensor-model-parallel-size", "2"]):
        done = subprocess.run(
            command + more, input=said, capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert "say it shorter" in done.stderr
        texts.append(json.loads(done.stdout)["messages"])
    assert texts[0] == texts[1]
    assert [message["content"] for message in texts[0][::2]] == ["the end", "of the text"]


@in_world(1)
def test_an_answer_that_is_stopped_stays_as_it_is_and_the_conversation_goes_on(run_directory: Path) -> None:
    whole = conversation(run_directory).answer("the hand")
    chat = conversation(run_directory)
    pieces: list[str] = []
    asked = iter([False, False, False, True])
    stopped = chat.answer("the hand", lambda _, piece: pieces.append(piece), lambda: next(asked))
    assert stopped.finish_reason == "cancelled"
    assert stopped.tokens == whole.tokens[:4]
    assert whole.text.startswith(stopped.text) and stopped.text == "".join(pieces)
    assert not chat.generator.busy
    assert chat.messages[-1] == {"role": "assistant", "content": stopped.text}
    before = list(chat.messages)
    chat.generator.prompt_tokens = 4  # it is stopped before all is read
    assert chat.answer("and the text", is_over=lambda: True).text == ""
    assert chat.messages == before, "of an answer without a word nothing is kept"
    assert chat.answer("and the text", is_over=lambda: False).finish_reason != "cancelled"


@pytest.mark.parametrize("more", [[], ["--nproc", "2", "--tensor-model-parallel-size", "2"]])
def test_ctrl_c_stops_an_answer_and_at_the_prompt_ends_the_chat(tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "text.txt").write_text("the end of the text, and of the hand\n" * 10, encoding="utf-8")
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = train_bpe([tmp_path / "text.txt"], 290, tmp_path / "tokenizer", special_tokens=special)
    long = (*TP2_SP, f"model.max_sequence_length={LONG}")
    run_distributed(save_random_model, 2, tmp_path, tokenizer.vocab_size, long)
    command = [sys.executable, "-m", "megalm", "chat", str(tmp_path), "--greedy", "--chat-template", "chatml"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", str(LONG // 2), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.stdin and process.stdout and process.stderr
    impatience = threading.Timer(240, process.kill)
    impatience.start()
    try:
        for _ in range(2):
            process.stdin.write("the end\n")
            process.stdin.flush()
            begun = process.stdout.read(1)
            assert begun, process.stderr.read()
            process.send_signal(signal.SIGINT)
            answer = begun + process.stdout.readline()
            assert answer.endswith("\n")
            assert len(answer) < LONG // 4, "it would have been longer"
            assert process.poll() is None
        for seconds in (
            20,
            60,
        ):  # a signal just before Python waits in read() is told after it: then one presses again
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        assert process.poll() == 130, process.poll()
    finally:
        impatience.cancel()
        process.kill()
        process.communicate()


def test_more_processes_than_parts_of_the_model_are_refused() -> None:
    request = ChatRequest(checkpoint="run", tensor_model_parallel_size=2)
    with pytest.raises(UserError, match="4 processes for a model in 2 parts"):
        request.check_world_size(4)

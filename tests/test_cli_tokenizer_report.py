"""The commands that look at tokenizers: what they print, in words and as JSON, in colour and without."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from megalm.cli_tokenizer import tokenizer_app
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from tests.tokenizer.small_tokenizers import save

ROOT = Path(__file__).parents[1]
CHAT = [
    {"role": "user", "content": "What is the sea?<|im_end|>"},
    {"role": "assistant", "content": "The sea is wide."},
]


def run(*arguments, text: str | None = None) -> str:
    result = CliRunner().invoke(tokenizer_app, list(map(str, arguments)), input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments) -> dict:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: save(root / kind, kind) for kind in ("byte-level", "wordpiece")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    documents = [("The sea is wide.", "en"), ("東京は", "ja"), ("A poem, please.", "en")]
    lines = (json.dumps({"body": text, "metadata": {"language": language}}) for text, language in documents)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path / "a.jsonl"


def test_info_describes_a_tokenizer(saved):
    described = run_json("info", saved["byte-level"])
    tokenizer = load_tokenizer(saved["byte-level"])
    assert described["hash"] == tokenizer.hash and described["eod_id"] == tokenizer.eod_id
    assert described["kind"] == "byte-level BPE" and "corpus" not in described
    shown = run("info", saved["byte-level"])
    assert f"vocab_size: {tokenizer.vocab_size}\n" in shown and "kind: byte-level BPE\n" in shown
    assert "special_tokens: 8  <unk>=0 <s>=1" in shown and "lossless: yes\n" in shown


def test_info_measures_a_corpus_by_group(saved, source):
    options = (
        "info",
        saved["wordpiece"],
        source,
        "--text-key",
        "body",
        "--by",
        "metadata.language",
        "--examples",
        2,
    )
    corpus = run_json(*options)["corpus"]
    tokenizer = load_tokenizer(saved["wordpiece"])
    assert corpus["total"]["documents"] == 3 and corpus["total"]["words"] == 10
    english = corpus["groups"]["metadata.language"]["en"]
    assert english["tokens"] == len(tokenizer.encode("The sea is wide.")) + len(
        tokenizer.encode("A poem, please.")
    )
    assert len(corpus["most_frequent"]) == len(corpus["longest_used"]) == 2
    lines = run(*options).splitlines()
    row = next(line for line in lines if line.startswith("en")).split()
    assert row[1:4] == ["31", str(english["tokens"]), f"{english['bytes_per_token']:.3f}"]
    assert next(line for line in lines if line.startswith("ja")).count("*") == 2
    assert any(line.startswith("* ") and "each character counts as a word" in line for line in lines)
    assert any(line.startswith(f"unused_pieces: {corpus['unused_pieces']}, the longest: ") for line in lines)
    assert run_json(*options, "--sample-bytes", 1)["corpus"]["total"]["documents"] == 1


def test_compare_prints_a_table_a_plot_and_differences(saved, source, tmp_path):
    both = (saved["byte-level"], saved["wordpiece"])
    options = ("compare", *both, "--input", source, "--text-key", "body", "--by", "metadata.language")
    rows = run_json(*options, "--plot", tmp_path / "p.png", "--hidden-size", 10)["tokenizers"]
    assert [row["tokenizer"] for row in rows] == ["byte-level", "wordpiece"]
    assert rows[0]["embedding_parameters"] == 10 * rows[0]["vocab_size"]
    assert imread(tmp_path / "p.png").shape[1] > 1000
    lines = run(*options).splitlines()
    assert re.match(r"tokenizer +vocabulary +embedding at 4096 +tokens +bytes/token", lines[0])
    assert next(line for line in lines if line.startswith("wordpiece")).split()[1] == str(
        rows[1]["vocab_size"]
    )
    english = [row["groups"]["metadata.language"]["en"]["bytes_per_token"] for row in rows]
    assert next(line for line in lines if line.startswith("en")).split() == [
        "en",
        "31",
        *(f"{x:.3f}" for x in english),
    ]
    shown = run("compare", *both, "--text", "unquestionably the sea")
    assert re.match(r"\d+ places? differ", shown) and "byte-level" in shown
    found = run_json("compare", *both, "--text", "unquestionably the sea")["differences"]
    assert "".join(found[0]["wordpiece"]) == "unquestionably the sea"[found[0]["start"] : found[0]["stop"]]
    assert run("compare", both[0], both[0], "--text", "sea") == "no place differs\n"


def test_compare_says_what_is_missing(saved, source, tmp_path):
    for arguments, said in (
        ((), "nothing to compare the tokenizers on"),
        (("--text", "a"), "there is one; name another"),
        (("--input", source, "--plot", tmp_path / "a.gif"), "name a file in .png or .svg"),
    ):
        with pytest.raises(UserError, match=said):
            run("compare", saved["wordpiece"], *arguments)


def test_tokenizers_of_one_name_are_told_by_their_paths(saved, source):
    paths = (
        saved["wordpiece"],
        saved["wordpiece"] / "tokenizer.json",
        saved["byte-level"] / "tokenizer.json",
    )
    rows = run_json("compare", *paths, "--input", source, "--text-key", "body")["tokenizers"]
    assert [row["tokenizer"] for row in rows] == [str(paths[0]), str(paths[1]), "byte-level"]


def test_show_prints_tokens_without_colour_when_piped(saved):
    tokenizer = load_tokenizer(saved["byte-level"])
    shown = run("show", saved["byte-level"], "--text", "The sea\n", "--ids")
    assert "\x1b" not in shown
    assert [int(i) for i in re.findall(r"‹(\d+)›", shown)] == tokenizer.encode("The sea\n")
    assert run("show", saved["byte-level"], text="The sea\n") == run(
        "show", saved["byte-level"], "--text", "The sea\n"
    )
    tokens = run_json("show", saved["byte-level"], "--text", "é x")["tokens"]
    assert [token["id"] for token in tokens] == tokenizer.encode("é x")
    assert (
        "".join(bytes.fromhex(token["bytes"]).decode("latin-1") for token in tokens).encode("latin-1")
        == "é x".encode()
    )


def on_terminal(*arguments, **environment: str) -> str:
    """What the command writes to a terminal of 40 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 40, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    subprocess.run(
        [sys.executable, "-m", "megalm", "tokenizer", *map(str, arguments)],
        stdout=slave, stdin=subprocess.DEVNULL, cwd=ROOT, check=True, timeout=120,
        env={**kept, "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment},
    )  # fmt: skip
    os.close(slave)
    with open(master, "rb", buffering=0) as file:
        return file.read(1 << 16).decode()


def test_show_colours_tokens_on_a_terminal_and_heeds_no_color(saved):
    coloured = on_terminal("show", saved["byte-level"], "--text", "The sea is wide")
    assert len(re.findall(r"\x1b\[[0-9;]*48;2;", coloured)) == len(
        load_tokenizer(saved["byte-level"]).encode("The sea is wide")
    )
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).strip() == "The·sea·is·wide"
    plain = on_terminal("show", saved["byte-level"], "--text", "The sea", NO_COLOR="1")
    assert (
        "\x1b[" not in plain
        and plain.strip() == run("show", saved["byte-level"], "--text", "The sea").strip()
    )
    assert "│" in plain


def test_chat_prints_what_is_trained_on(saved, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    options = ("chat", saved["byte-level"], "--messages", tmp_path / "chat.json", "--template", "chatml")
    shown = run(*options).replace("│", "")
    assert shown.endswith("<|im_start|>assistant⏎\n[[The·sea·is·wide.<|im_end|>]]⏎\n\n")
    encoded = run_json(*options)
    tokenizer = load_tokenizer(saved["byte-level"])
    trained = [i for i, counts in zip(encoded["ids"], encoded["loss_mask"], strict=True) if counts]
    assert tokenizer.decode(trained) == "The sea is wide.<|im_end|>"
    assert encoded["ids"].count(tokenizer.token_id("<|im_end|>")) == 2
    assert run_json(*options, "--add-generation-prompt")["text"].endswith("<|im_start|>assistant\n")
    run(*options, "--html", tmp_path / "chat.html")
    assert "trained on" in (tmp_path / "chat.html").read_text()


def test_chat_takes_the_template_of_the_tokenizer_and_objects_with_tools(saved, tmp_path):
    directory = tmp_path / "t"
    save(directory, "byte-level")
    (directory / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ tools[0].name }}{{ messages[0].content }}"
    )
    (tmp_path / "chat.json").write_text(json.dumps({"messages": CHAT, "tools": [{"name": "weather"}]}))
    assert (
        run_json("chat", directory, "--messages", tmp_path / "chat.json")["text"]
        == "<s>weatherWhat is the sea?<|im_end|>"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "holds neither"),
        ('{"messages": 3}', "holds neither"),
    ],
)
def test_chat_files_that_hold_no_messages_are_told(saved, tmp_path, content, said):
    with pytest.raises(UserError, match="no messages at .*chat.json; check the path"):
        run("chat", saved["byte-level"], "--messages", tmp_path / "chat.json", "--template", "plain")
    (tmp_path / "chat.json").write_text(content)
    with pytest.raises(UserError, match=said):
        run("chat", saved["byte-level"], "--messages", tmp_path / "chat.json", "--template", "plain")


@pytest.mark.parametrize(
    "options",
    [
        ["info", "--by", "lang"],
        ["info", "--sample-bytes", "9"],
        ["compare", "--text", "a", "--by", "lang"],
        ["compare", "--text", "a", "--plot", "a.png"],
    ],
)
def test_options_that_measure_are_refused_where_nothing_is_measured(saved, options):
    tokenizers = [saved["byte-level"]] * (1 + (options[0] == "compare"))
    with pytest.raises(UserError, match=r"for measuring"):
        run(options[0], *tokenizers, *options[1:])


def test_mistakes_are_one_line_and_exit_code_2(saved, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    (tmp_path / "t.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    command = [
        "tokenizer",
        "chat",
        saved["byte-level"],
        "--messages",
        tmp_path / "chat.json",
        "--template",
        tmp_path / "t.jinja",
    ]
    failed = subprocess.run(
        [sys.executable, "-m", "megalm", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("megalm: error: chat template") and failed.stderr.count("\n") == 1

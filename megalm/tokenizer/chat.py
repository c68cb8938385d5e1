"""Chat templates: messages to token ids and a loss mask, in Hugging Face's convention."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from megalm.errors import UserError
from megalm.tokenizer.added import token_text
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.chat_ids import Match, Offsets, SpecialEncoder
from megalm.tokenizer.chat_turns import Message, Turns, tracked_messages, tracked_values
from megalm.tokenizer.export import TEMPLATE_NAME
from megalm.tokenizer.load import CONFIG_NAME, read_json
from megalm.tokenizer.sandbox import GENERATION, TemplateEnvironment, render

TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
BUNDLED = Path(__file__).with_name("templates")
COMMON_BOS_TOKENS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")


class Encoded(NamedTuple):
    """A chat as ids, the mask of what the assistant says (1, its end token included; else 0), and as text."""

    ids: list[int]
    loss_mask: list[int]
    text: str


class ChatTemplate:
    """A Jinja template that writes messages as one text, with the tokenizer that reads it."""

    def __init__(
        self, source: str | Mapping[str, str], tokenizer: Tokenizer, variables: Mapping[str, str], name: str
    ) -> None:
        """Take the template, or several by name (`default`, and `tool_use` for chats with tools).

        variables: what the template reads beside the messages, such as `bos_token`. Raises UserError for a
        template that is no Jinja.
        """
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if "default" not in sources:
            raise UserError(
                f"{name} has the templates {', '.join(sources) or 'none'} but no default one; name one default"
            )
        self.name = name
        self.sources = sources
        """The templates by their names."""
        self.variables = dict(variables)
        self._tokenizer = tokenizer
        self._specials = SpecialEncoder(tokenizer)
        self._environment = TemplateEnvironment()
        self._templates = {key: self._compile(text) for key, text in sources.items()}

    def encode(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Encoded:
        """Return the ids, loss mask and text of `messages`: mappings with `role` and `content` (text or parts), and more.

        Ids are those of Hugging Face's `apply_chat_template`, except that a special token spelled by a message,
        tool or document, whole or in part, stays text. The mask is 1 where a `{% generation %}` block stands; for
        a template without one, from an assistant message's first character to the special token that ends it.
        Raises UserError for messages that are none, and for a template that refuses them, reads a variable that
        is missing, leaves its sandbox or does not end.
        """
        encoded, _ = self.encode_with_offsets(messages, add_generation_prompt, tools, documents, **variables)
        return encoded

    def encode_with_offsets(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> tuple[Encoded, Offsets]:
        """As `encode`, and the characters [start, stop) of the text that each token covers."""
        chat = tracked_messages(messages, self._specials)
        given = {
            **variables,
            "tools": tracked_values(tools, "tools"),
            "documents": tracked_values(documents, "documents"),
        }
        text = self._render(chat, add_generation_prompt, given)
        meant = self._meant(text)
        ids, offsets = self._specials.encode(str.__str__(text), meant)
        if self._chosen(tools)[1]:
            spoken = [(a, b) for a, b, source in getattr(text, "spans", ()) if source == GENERATION]
        else:
            turns = Turns(chat, lambda part, prompt: self._render(part, prompt, given), self._meant)
            spoken = turns.spoken(text, add_generation_prompt)
        return Encoded(ids, _mask(offsets, spoken, len(text)), str.__str__(text)), offsets

    def end_of_turn(self) -> list[str]:
        """The special token with which the template ends what the assistant says; none where that ends documents as well."""
        encoded = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        said = [token for token, counts in zip(encoded.ids, encoded.loss_mask, strict=True) if counts]
        ends = self._tokenizer.eod_id
        special = {number: text for text, number in self._tokenizer.special_tokens.items() if number != ends}
        return [special[said[-1]]] if said and said[-1] in special else []

    def _meant(self, text: str) -> list[Match]:
        """The special tokens in `text` that the template wrote."""
        spans = [(start, stop) for start, stop, source in getattr(text, "spans", ()) if source != GENERATION]
        of_messages = _mask(matches := self._specials.find(text), spans, len(text))
        return [match for match, given in zip(matches, of_messages, strict=True) if not given]

    def _render(self, messages: Sequence[Any], add_generation_prompt: bool, given: Mapping[str, Any]) -> str:
        """The text of messages whose texts are tracked, tracked; raises UserError where the template fails."""
        template, _ = self._chosen(given["tools"])
        read = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return render(template, {**self.variables, **given, **read})
        except RecursionError as error:
            raise UserError(
                f"chat template {self.name} calls itself without end; correct the template"
            ) from error
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"chat template {self.name} fails on these {len(messages)} messages: {said}; correct the messages or "
                "choose another template"
            ) from error

    def _chosen(self, tools: Any) -> tuple[jinja2.Template, bool]:
        return self._templates["tool_use" if tools and "tool_use" in self._templates else "default"]

    def _compile(self, source: str) -> tuple[jinja2.Template, bool]:
        try:
            tree = self._environment.parse(source)
            marks = any(node.name == "_marked" for node in tree.find_all(nodes.ExtensionAttribute))
            return self._environment.from_string(tree), marks
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"chat template {self.name} is no Jinja (line {error.lineno}: {error.message}); correct it"
            ) from error
        except (RecursionError, MemoryError, SyntaxError) as error:  # of the Python that Jinja makes of it
            raise UserError(f"chat template {self.name} is nested too deeply; correct it") from error


def load_chat_template(
    path_or_name: str | Path, tokenizer: Tokenizer, config: str | Path | None = None
) -> ChatTemplate:
    """Open a bundled template by name, a .jinja file, or what lies with a tokenizer: its directory or a file in it.

    With a tokenizer, `chat_template.jinja` comes before the `chat_template` of `tokenizer_config.json`.
    `bos_token`, `eos_token` and the like are what that file says (`config`: another one, or its directory);
    without it, the first common name of a begin token and the tokenizer's end token. Raises UserError where there
    is no template, or a bundled one needs special tokens that the tokenizer lacks.
    """
    path = Path(path_or_name)
    if str(path_or_name) in bundled_templates():
        source = (BUNDLED / f"{path_or_name}.jinja").read_text(encoding="utf-8")
        _check_special_tokens(str(path_or_name), source, tokenizer)
        settings = _read_config(Path(config)) if config else {}
        return ChatTemplate(source, tokenizer, _token_variables(settings, tokenizer), str(path_or_name))
    if not path.exists():
        raise UserError(
            f"no chat template at {path}; give a file, a tokenizer with one, or one of {', '.join(bundled_templates())}"
        )
    settings = _read_config(Path(config) if config else path)
    found, file = _find_source(path, settings)
    return ChatTemplate(found, tokenizer, _token_variables(settings, tokenizer), str(file))


def template_hash(sources: Mapping[str, str]) -> str:
    """Return a hash of a template, or of several by name, by which two are told apart."""
    return hashlib.sha256(json.dumps(dict(sources), sort_keys=True).encode()).hexdigest()


def stored_template(path: str | Path) -> dict[str, str] | None:
    """Return the chat templates, by name, that lie with the tokenizer `path`; None where there is none."""
    path = Path(path)
    settings = _read_config(path)
    if not (path if path.is_dir() else path.parent).joinpath(TEMPLATE_NAME).is_file() and not settings.get(
        "chat_template"
    ):
        return None
    source, _ = _find_source(path, settings)
    return {"default": source} if isinstance(source, str) else dict(source)


def bundled_templates() -> list[str]:
    """Names of the templates that come with megalm."""
    return sorted(file.stem for file in BUNDLED.glob("*.jinja"))


def _find_source(path: Path, settings: Mapping[str, Any]) -> tuple[str | dict[str, str], Path]:
    directory = path if path.is_dir() else path.parent
    file = path if path.suffix in TEMPLATE_SUFFIXES else directory / TEMPLATE_NAME
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), file
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 ({error.reason}); convert it") from error
    source, file = settings.get("chat_template"), directory / CONFIG_NAME
    if isinstance(source, list):  # Hugging Face's form of several templates
        source = {entry["name"]: entry["template"] for entry in source if {"name", "template"} <= set(entry)}
    if isinstance(source, (str, dict)):
        return source, file
    raise UserError(
        f"there is no chat template with {path}: neither {TEMPLATE_NAME} nor chat_template in {CONFIG_NAME}; name a "
        f"file or one of {', '.join(bundled_templates())}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Hugging Face's settings of the tokenizer in the directory `path` or beside the file `path`; {} where there are none."""
    return read_json((path if path.is_dir() else path.parent) / CONFIG_NAME)


def _token_variables(settings: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like; a template may always write `bos_token`."""
    found = {}
    for key, token in settings.items():
        spelled = token_text(token)
        if key.endswith("_token") and isinstance(spelled, str):
            found[key] = spelled
    known = tokenizer.special_tokens
    begin = "" if settings else next((token for token in COMMON_BOS_TOKENS if token in known), "")
    end = tokenizer.token_bytes(tokenizer.eod_id).decode("utf-8", "replace")
    return {"bos_token": begin, "eos_token": end, **found}


def _check_special_tokens(name: str, source: str, tokenizer: Tokenizer) -> None:
    """Refuse a bundled template whose `<|...|>` would be plain text; those of zephyr are meant to be."""
    needed = dict.fromkeys(re.findall(r"'(<\|\w+\|>)", source)) if name in ("chatml", "llama-3") else {}
    missing = [token for token in needed if token not in tokenizer.special_tokens]
    if missing:
        options = " ".join(f"--special-token '{token}'" for token in missing)
        raise UserError(
            f"chat template {name} needs the special tokens {' '.join(missing)}, which the tokenizer lacks; train one "
            f"with {options} or take a template of plain text: alpaca, plain, zephyr"
        )


def _mask(ranges: Sequence[Match], marked: Sequence[Match], length: int) -> list[int]:
    """For each range of characters, whether (1 or 0) any of `marked` shares a character with it."""
    flags = bytearray(length)
    for start, stop in marked:
        flags[start:stop] = b"\1" * (stop - start)
    return [int(1 in flags[start:stop]) for start, stop in ranges]

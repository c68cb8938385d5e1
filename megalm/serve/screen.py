"""The server's policy: what people write is checked before a model sees it, and what a model writes before people do."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from megalm.moderation.audit import Audit
from megalm.moderation.policy import Policy, Side, load_policy
from megalm.moderation.screen import Checked, Finding, TextScreen, check
from megalm.moderation.settings import Action
from megalm.serve.metrics import Metrics
from megalm.serve.settings import ServeSettings
from megalm.serve.wire import Message
from megalm.serve.world import Piece
from megalm.tokenizer import Tokenizer

FILTERED = "content_filter"
"""Why a text ends where it is blocked."""


@dataclass(frozen=True)
class Asker:
    """Whose request it is, for the audit log."""

    request: str
    client: str


@dataclass
class Screen:
    """Checks texts by a policy; findings are counted, and told to the audit log, if there is one."""

    policy: Policy
    audit: Audit | None
    metrics: Metrics

    async def look(self, texts: Sequence[str]) -> list[Checked]:
        """What there is in texts, on whatever side; nothing is counted or recorded."""
        return await asyncio.to_thread(lambda: [check(self.policy, text, None) for text in texts])

    async def read(self, texts: Sequence[str], asker: Asker) -> list[Checked]:
        """Check what people wrote."""
        checked = await asyncio.to_thread(lambda: [check(self.policy, text, "input") for text in texts])
        for text, one in zip(texts, checked, strict=True):
            digest = hashlib.sha256(text.encode()).hexdigest()
            self.tell("input", asker, one.findings, digest, text if self.policy.settings.keep_text else None)
        return checked

    def tell(
        self, side: Side, asker: Asker, findings: Sequence[Finding], digest: str, text: str | None
    ) -> None:
        """Count and record what was found in a text, if anything was. digest: the text's SHA-256. text: None: it is not kept."""
        if not findings:
            return
        for category, action in {(finding.category, finding.action) for finding in findings}:
            self.metrics.moderated.labels(category, side, action).inc()
        if self.audit is not None:
            scores: dict[str, float] = {}
            for finding in findings:
                scores[finding.category] = max(scores.get(finding.category, 0.0), finding.score)
            self.audit.write(
                request=asker.request,
                client=asker.client,
                side=side,
                categories=scores,
                action=next(
                    one for one in get_args(Action) if one in {finding.action for finding in findings}
                ),
                sha256=digest,
                **({} if text is None else {"text": text}),
            )


def open_screen(settings: ServeSettings, metrics: Metrics) -> Screen | None:
    """The screen that the settings ask for. UserError for a policy that is none, or a log that cannot be written."""
    if settings.moderation is None:
        return None
    log = settings.moderation_log
    return Screen(load_policy(settings.moderation), None if log is None else Audit(log), metrics)


class OutputScreen:
    """The texts of one request on their way from the model to whom they are for."""

    def __init__(self, screen: Screen, asker: Asker, texts: int, tokenizer: Tokenizer) -> None:
        self.screen, self.asker = screen, asker
        self._texts = [_Held(screen.policy, tokenizer) for _ in range(texts)]

    def refusal(self, number: int) -> str | None:
        """What people are told of the text with that number, if it was blocked."""
        category = self._texts[number].screen.blocked
        return None if category is None else self.screen.policy.refusal(category)

    async def through(
        self, written: AsyncIterator[tuple[int, Piece]]
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """What may be shown, until all texts have ended, by themselves or blocked; then no more is taken from `written`."""
        left = len(self._texts)
        try:
            async for number, piece in written:
                text = self._texts[number]
                if text.has_ended:
                    continue
                for shown in text.take(piece):
                    yield number, shown
                left -= text.has_ended
                if not left:
                    return
        finally:
            for text in self._texts:
                self.screen.tell(
                    "output", self.asker, text.screen.findings, text.digest.hexdigest(), text.kept
                )


class _Held:
    """One text. A token is shown once the text shown reaches beyond its last byte, and never if some of it may be hidden.

    How far a token reaches is known but roughly, for the model's text may come later than its tokens: it does not begin before
    the text that was there when it came, and does not end beyond the bytes of all tokens so far.
    """

    def __init__(self, policy: Policy, tokenizer: Tokenizer) -> None:
        self.screen, self.tokenizer = TextScreen(policy, "output"), tokenizer
        self.has_ended = False
        self.digest = hashlib.sha256()
        self.kept: str | None = "" if policy.settings.keep_text else None
        self._written = self._token_bytes = 0
        self._waiting: list[tuple[int, int, Message]] = []
        """Tokens: the character before which it does not begin, the byte beyond which it does not end, itself."""
        self._rest, self._character, self._byte = "", 0, 0
        """What is not decided yet, and where it begins."""
        self._hidden: list[tuple[int, int, int]] = []
        """Places that were masked: first and last character, first byte."""

    def take(self, piece: Piece) -> list[Piece]:
        """What may be shown once `piece` has come."""
        if piece.token is not None:
            self._token_bytes += len(self.tokenizer.token_bytes(piece.token["id"]))
            self._waiting.append((self._written, self._token_bytes, piece.token))
        self._written += len(piece.text)
        self._rest += piece.text
        self.digest.update(piece.text.encode("utf-8", "replace"))
        if self.kept is not None:
            self.kept += piece.text
        shown = self.screen.feed(piece.text, final=piece.reason is not None and not piece.cut)
        if piece.cut:  # what is to be hidden may end in what the text was cut before
            self._written += len(piece.cut)
            self._rest += piece.cut
            shown = (shown + self.screen.feed(piece.cut, final=True)).removesuffix(piece.cut)
        self._advance()
        tokens = self._settled_tokens(is_last=piece.reason is not None and self.screen.blocked is None)
        pieces = [Piece(piece.sample, "", token) for token in tokens]
        if piece.prompt is not None:  # what people wrote themselves
            pieces.insert(0, Piece(piece.sample, "", prompt=piece.prompt))
        if shown:
            pieces[:1] = [replace(pieces[0], text=shown) if pieces else Piece(piece.sample, shown)]
        if self.screen.blocked is not None:
            self.has_ended = True
            return [*pieces, Piece(piece.sample, "", None, FILTERED, piece.tokens)]
        if piece.reason is not None:
            self.has_ended = True
            last = pieces.pop() if pieces else Piece(piece.sample, "")
            return [*pieces, replace(last, reason=piece.reason, tokens=piece.tokens)]
        return pieces

    def _advance(self) -> None:
        """Follow the screen's decisions in characters and bytes."""
        for begin, end in self.screen.masked[len(self._hidden) :]:
            before = self._rest[: max(0, begin - self._character)]
            self._hidden.append((begin, end, self._byte + _bytes(before)))
        length = self.screen.decided - self._character
        self._byte += _bytes(self._rest[:length])
        self._rest, self._character = self._rest[length:], self.screen.decided

    def _settled_tokens(self, is_last: bool) -> list[Message]:
        ready = 0
        while ready < len(self._waiting) and (is_last or self._waiting[ready][1] <= self._byte):
            ready += 1
        found, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return [token for begin, end, token in found if not self._is_hidden(begin, end)]

    def _is_hidden(self, begin: int, end: int) -> bool:
        return any(begin < last and end > byte for _, last, byte in self._hidden)


def _bytes(text: str) -> int:
    """At most as many as the tokens had that made it: what is no character came of one byte at least."""
    return len(text.encode("utf-8", "replace")) - 2 * text.count("\ufffd")

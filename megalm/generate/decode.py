"""The decoding engine: many requests at once through one copy of the model, whatever ranks it is spread over."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from megalm import progress
from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.beams import BeamSearch
from megalm.generate.choice import Choice, Chooser, Continuations, ToldPart
from megalm.generate.forward import Network
from megalm.generate.graph import Capture, GraphSteps, cuda_capture
from megalm.generate.lean import Pass, PromptPart
from megalm.generate.limits import cache_tokens
from megalm.generate.mode import decoding
from megalm.generate.prefix import PrefixCache
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion, Event, Request, Row, Token, beam_completion
from megalm.generate.text import GrowingText
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout
from megalm.tokenizer import Tokenizer


def context_length(config: Config) -> int:
    """Tokens that prompt and continuation may have together.

    The position table's size, or without a table the longer of `model.max_sequence_length` and the training sequences.
    """
    if config.model.position_embedding in ("learned", "sinusoidal"):
        return config.model.max_sequence_length
    return max(config.model.max_sequence_length, config.batch.seq_length)


class Generator:
    """Continues prompts with `chunks`, this rank's parts of the model under `layout`; all ranks of its copy make the same calls.

    Requests are handed in at any time (`submit`) and go on together, a token each a `step`; each one's draws come from its own
    seed. Those that find no room wait for it. The model may be in training: what generating changes of its state is put back
    (see `decoding`), and `forget` is to be called when the weights have changed.
    """

    def __init__(
        self,
        chunks: Sequence[GPT],
        layout: Layout,
        context_length: int,
        tokenizer: Tokenizer | None = None,
        *,
        max_rows: int = 64,
        cache_bytes: int | None = None,
        prompt_tokens: int = 1024,
        prefix_share: float = 0.0,
        capture: Capture | None = None,
    ) -> None:
        """With a tokenizer, texts end at its end-of-document token or a stop string, and only its ids are drawn.

        max_rows: sequences that are open at a time. cache_bytes: memory of a rank for keys and values; by default half of what
        is free. prompt_tokens: how many tokens of prompts a step reads at most, beside those that it adds. prefix_share: of the
        memory, what is to hold the beginnings of past prompts. capture: records steps that only add tokens (see `GraphSteps`); by
        default as CUDA graphs where there is CUDA.
        """
        # other copies of the model, which would hold some of its experts, decode other prompts
        assert layout.ep_size == 1
        self.chunks, self.layout, self.tokenizer = chunks, layout, tokenizer
        self.context_length, self.max_rows, self.prompt_tokens = context_length, max_rows, prompt_tokens
        self.network = Network(chunks, layout)
        self.vocab_size = self.network.vocab_size if tokenizer is None else tokenizer.vocab_size
        tokens = cache_tokens(self.network, cache_bytes)
        self.prefixes = PrefixCache(int(tokens * prefix_share))
        self.cache = self.network.make_cache(tokens - int(tokens * prefix_share))
        if capture is None and layout.device.type == "cuda":
            capture = cuda_capture
        self._graphs = None
        if capture is not None and GraphSteps.can_record(self.network):
            self._graphs = GraphSteps(self.network, capture)
        self.chooser = Chooser(layout, self.vocab_size)
        self.rows: list[Row] = []
        """The open sequences in the order of their slots: first those that grow, then those whose prompts are being read."""
        self._waiting: deque[Request] = deque()
        self._held: list[Event] = []
        """What came of requests beside those of a call of `generate`, for the next `step`."""
        self._count = 0
        self._is_running = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        sequences: Sequence[int] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        is_over: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Continue each of `prompts` (token ids, not empty); the result is the same on every rank.

        A prompt's `options.n` texts follow each other. sequences: numbers that set the prompts' random draws apart, by default
        0, 1, ...; a prompt's result depends on its own number and on no other prompt. on_text: called with (index of the prompt,
        piece of its first text) as pieces come. is_over: asked after each step, on every rank, with one answer for all: once it is
        true, texts stay as they are, `cancelled` (those of beams empty). Requests that were submitted go on beside it; what comes of them, the next `step`
        tells. Raises UserError as `check` does.
        """
        self.check(prompts, options)
        names = range(len(prompts)) if sequences is None else sequences
        places = {
            self.submit(prompt, options, name): place
            for place, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        }
        found: list[list[Completion]] = [[] for _ in prompts]
        done: dict[tuple[int, int], Completion] = {}
        try:
            with self.running():
                while len(done) < len(prompts) * options.n:
                    events = self._proceed()
                    self._held += [event for event in events if event.request not in places]
                    for event in events:
                        if event.request not in places:
                            continue
                        if event.text and on_text is not None and event.sample == 0:
                            on_text(places[event.request], event.text)
                        if event.completion is not None:
                            done[event.request, event.sample] = event.completion
                    if is_over is not None and is_over():
                        break
            for number in places:
                for sample in range(options.n):
                    done.setdefault((number, sample), self._so_far(number, sample))
        finally:  # an interrupt leaves none behind
            self.cancel(*places)
        for (number, _), completion in sorted(done.items(), key=lambda item: item[0]):
            found[places[number]].append(completion)
        return [completion for texts in found for completion in texts]

    def check(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> None:
        """Raise UserError where a prompt leaves no room in the context, or can never be continued so."""
        for number, prompt in enumerate(prompts):
            self._check(prompt, options, f"prompt {number}")

    def submit(self, prompt: Sequence[int], options: GenerationOptions, sequence: int = 0) -> int:
        """Hand in a prompt (token ids); its number, which the events of `step` bear. Raises UserError as `check` does."""
        self._check(prompt, options, "the prompt")
        self._count += 1
        limit = self._limit(prompt, options)
        request = Request(self._count, list(prompt), options, str(sequence), limit)
        if options.beams > 1:
            request.search = BeamSearch(
                options, limit - len(prompt), self._eod_id, self._text(prompt, options)
            )
        self._waiting.append(request)
        return request.number

    def cancel(self, *numbers: int) -> None:
        """Forget requests; nothing more comes of them. At any time, within `running` or not."""
        gone = set(numbers)
        self._waiting = deque(request for request in self._waiting if request.number not in gone)
        self._held = [event for event in self._held if event.request not in gone]
        kept = [row for row in self.rows if row.request.number not in gone]
        if len(kept) < len(self.rows):
            with torch.inference_mode():  # as the cache was made
                self._keep(kept)

    @property
    def busy(self) -> bool:
        """Whether a request is open, or something has come of one that no `step` has told yet."""
        return bool(self.rows or self._waiting or self._held)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within it the model is ready for `step`, and not for training."""
        if self._is_running:
            yield
            return
        with decoding(self.chunks):
            self._is_running = True
            try:
                yield
            finally:
                self._is_running = False

    def step(self) -> list[Event]:
        """Read some of the prompts, add a token to all sequences that grow; what that brought, the same on every rank.

        To be called within `running`.
        """
        assert self._is_running
        progress.beat()
        events = self._proceed()
        held, self._held = self._held, []
        return held + events

    def forget(self) -> None:
        """Drop what is remembered of past prompts: the weights are others now. Gives back memory that no text is using."""
        self.prefixes.clear()
        if not self.rows:
            self.cache.clear()

    def _limit(self, prompt: Sequence[int], options: GenerationOptions) -> int:
        if not options.max_new_tokens:
            return len(prompt) - 1
        return min(len(prompt) + options.max_new_tokens, self.context_length)

    def _check(self, prompt: Sequence[int], options: GenerationOptions, what: str) -> None:
        if not prompt:
            raise UserError(f"{what} is empty: it must have at least one token")
        if not options.max_new_tokens and not 2 <= len(prompt) <= self.context_length + 1:
            raise UserError(
                f"{what} has {len(prompt)} tokens: to be read alone, it must have 2 to {self.context_length + 1}"
            )
        if options.max_new_tokens and len(prompt) >= self.context_length:
            raise UserError(
                f"{what} has {len(prompt)} tokens, but the model's context of {self.context_length} "
                "has to hold it and at least one more: shorten it"
            )
        size = self.vocab_size
        if wrong := [token for token in prompt if not 0 <= token < size]:
            raise UserError(f"{what} has the token {wrong[0]}, but ids go from 0 to {size - 1}")
        if wrong := [token for token in options.logit_bias if not 0 <= token < size]:
            raise UserError(f"logit_bias names the token {wrong[0]}, but ids go from 0 to {size - 1}")
        if options.stop and self.tokenizer is None:
            raise UserError("stop strings need a tokenizer")
        if max(options.logprobs or 0, options.prompt_logprobs or 0, 2 * options.beams) > size:
            raise UserError(f"logprobs and 2 x beams are at most the {size} tokens of the vocabulary")
        if options.rows > self.max_rows:
            raise UserError(
                f"{what} asks for {options.rows} texts side by side, but at most {self.max_rows} are open at a time (max_rows)"
            )
        if not self.cache.fits(options.rows, self._limit(prompt, options)):
            raise UserError(
                f"{what} needs room for {options.rows} x {self._limit(prompt, options)} tokens, but the memory for keys and "
                f"values holds {self.cache.tokens}: lower max_new_tokens, or allow more memory (cache_gib)"
            )

    @property
    def _eod_id(self) -> int | None:
        return None if self.tokenizer is None else self.tokenizer.eod_id

    def _text(self, prompt: Sequence[int], options: GenerationOptions) -> GrowingText | None:
        return None if self.tokenizer is None else GrowingText(self.tokenizer, prompt, options.stop)

    def _so_far(self, number: int, sample: int) -> Completion:
        for row in self.rows:
            if (row.request.number, row.sample) == (number, sample) and row.request.search is None:
                return row.completion()
        return Completion([], "", "cancelled")

    def _proceed(self) -> list[Event]:
        self._admit()
        return self._step() if self.rows else []

    def _step(self) -> list[Event]:
        grown = sum(row.is_growing for row in self.rows)
        parts = self._parts(grown)
        read, wanted = [], list(range(grown))
        for part in parts:
            row = self.rows[part.slot]
            if part.start + part.count == len(row.tokens) and not row.request.is_read_only:
                read.append(part.slot)
                wanted.append(part.first + part.count - 1)
        told = [self._told(part) for part in parts]
        choices = len(wanted)
        wanted += [place for one in told for place in one.places]
        pass_ = self._pass(grown, parts)
        logits_RV = self._graphs.run(pass_, self.cache) if self._graphs else None
        if logits_RV is None:
            places = None
            if wanted != list(range(len(pass_.tokens_T))):
                places = torch.tensor(wanted, dtype=torch.int64, device=self.layout.device)
            logits_RV = self.network.run(pass_, self.cache, places)
        found = self.chooser.choose(logits_RV, self._ready(grown, read)) if choices else ([], [])
        self.chooser.tell(logits_RV, choices, told)
        # only now: after a step that failed, for want of memory for one, all can go on
        for row in self.rows[:grown]:
            row.cached += 1
        for part in parts:
            self.rows[part.slot].cached += part.count
        return [*self._read(parts), *self._advance(*found)]

    def _told(self, part: PromptPart) -> ToldPart:
        """What is to be told of a part of a prompt: each of its tokens but the last predicts the next one."""
        row = self.rows[part.slot]
        if row.request.options.prompt_logprobs is None:
            return ToldPart(row, [], [])
        labels = row.request.prompt[part.start + 1 : part.start + part.count + 1]
        return ToldPart(row, list(range(part.first, part.first + len(labels))), labels)

    def _read(self, parts: list[PromptPart]) -> list[Event]:
        """Of prompts that have been read whole what was asked for; of those that nothing is written to, the end."""
        events = []
        for part in parts:
            row = self.rows[part.slot]
            request = row.request
            if request.options.prompt_logprobs is None or row.cached < len(row.tokens):
                continue
            if request.is_read_only:
                row.finish_reason = "length"
            done = row.completion() if request.is_read_only else None
            events.append(Event(request.number, 0, "", done, prompt=request.told))
        return events

    def _admit(self) -> None:
        """Open requests in the order they came in, as long as there is room for all their sequences to their ends."""
        while self._waiting:
            request = self._waiting[0]
            slots = len(self.rows) + request.options.rows
            length = max([request.limit, *(row.request.limit for row in self.rows)])
            if slots > self.max_rows or not self.cache.fits(slots, length):
                return
            self._waiting.popleft()
            self.cache.reserve(slots, length, len(self.rows))
            for sample in range(request.options.rows):
                self.rows.append(self._open(request, sample))
            if self.prefixes.capacity and request.options.prompt_logprobs is None:
                first = slots - request.options.rows
                self.rows[first].cached = self.prefixes.load(request.prompt, self.cache, first)

    def _open(self, request: Request, sample: int) -> Row:
        text = None if request.search else self._text(request.prompt, request.options)
        counts = self.chooser.counts(request.prompt) if request.options.counts_tokens else None
        tokens = request.prompt[:-1] if request.is_read_only else list(request.prompt)
        return Row(request, sample, tokens, text, counts=counts)

    def _parts(self, grown: int) -> list[PromptPart]:
        """What of the prompts is read next, in the order of the requests; only a request's first row reads."""
        parts, room, first = [], self.prompt_tokens, grown
        for slot, row in enumerate(self.rows[grown:], start=grown):
            if row.sample:
                continue
            count = min(room, len(row.tokens) - row.cached)
            if not count:
                break
            parts.append(PromptPart(slot, first, row.cached, count))
            first, room = first + count, room - count
        return parts

    def _pass(self, grown: int, parts: list[PromptPart]) -> Pass:
        rows, width = self.rows, self.cache.length
        tokens = [row.tokens[-1] for row in rows[:grown]]
        positions = [row.cached for row in rows[:grown]]
        cells = [slot * width + position for slot, position in enumerate(positions)]
        longest = max(positions, default=0)
        uneven = any(position != longest for position in positions)
        for part in parts:
            end = part.start + part.count
            tokens += rows[part.slot].tokens[part.start : end]
            positions += range(part.start, end)
            cells += range(part.slot * width + part.start, part.slot * width + end)
        all_3T = torch.tensor([tokens, positions, cells], device=self.layout.device)
        return Pass(all_3T[0], all_3T[1], grown, longest + 1, uneven, parts, all_3T[2])

    def _ready(self, grown: int, read: list[int]) -> list[list[Row]]:
        """Of each of the pass's logits the rows that go on from them: one, or all of a request whose prompt has been read."""
        ready = [[row] for row in self.rows[:grown]]
        for slot in read:
            leader = self.rows[slot]
            if self.prefixes.capacity:
                self.prefixes.store(leader.tokens, self.cache, slot)
            count = leader.request.options.rows
            for other in range(slot + 1, slot + count):
                self.cache.copy(slot, other, 0, len(leader.tokens))
                self.rows[other].cached = len(leader.tokens)
            ready.append(self.rows[slot : slot + count])
        return ready

    def _advance(
        self, choices: list[tuple[Row, Choice]], continuations: list[tuple[Request, Continuations]]
    ) -> list[Event]:
        """Add what was chosen, and close those that have ended."""
        events = []
        for row, choice in choices:
            piece = row.add(choice.token, self._eod_id)
            if row.counts is not None:
                row.counts.add(choice.token)
            token = None
            if choice.logprob is not None:
                row.logprobs.append(choice.logprob)
                row.top_logprobs.append(choice.top)
                token = Token(choice.token, choice.logprob, choice.top)
            done = row.completion() if row.finish_reason else None
            if piece or done or token:
                cut = row.text.cut if row.text else ""
                number = row.request.number
                events.append(Event(number, row.sample, piece, done, token, None, row.steps, cut))
        for request, candidates in continuations:
            events += self._search(request, *candidates)
        self._keep([row for row in self.rows if row.finish_reason is None])
        return events

    def _search(
        self, request: Request, scores: list[float], parents: list[int], tokens: list[int]
    ) -> list[Event]:
        """Go on with a request's beams; at the end of the search all of its texts."""
        search = request.search
        assert search is not None
        first, beams = next(
            (slot, request.options.beams) for slot, row in enumerate(self.rows) if row.request is request
        )
        rows = self.rows[first : first + beams]
        sources = search.advance(scores, parents, tokens)
        if not search.growing:
            for row in rows:
                row.finish_reason = "stop"
            found = [beam_completion(beam) for beam in search.ended[: request.options.n]]
            return [
                Event(request.number, sample, done.text, done, tokens=len(done.tokens))
                for sample, done in enumerate(found)
            ]
        moved = [(first + source, first + place) for place, source in enumerate(sources) if source != place]
        if moved:
            self.cache.rearrange([pair[0] for pair in moved], [pair[1] for pair in moved], rows[0].cached)
        counts = [rows[source].counts for source in sources]
        for row in rows:  # where fewer grow than there are beams, the others only keep their place
            row.tokens = [*request.prompt, *search.growing[0].tokens]
        for row, beam, count in zip(rows, search.growing, counts, strict=False):
            row.tokens = [*request.prompt, *beam.tokens]
            if count is not None:
                row.counts = count.copy()
                row.counts.add(beam.tokens[-1])
        return []

    def _keep(self, rows: list[Row]) -> None:
        """Close all other rows: the last ones move up into their slots, those that grow before those that do not yet."""
        slots = {id(row): slot for slot, row in enumerate(self.rows)}
        growing = [row for row in rows if row.is_growing]
        kept: list[Row | None] = [None] * len(growing)
        late = []
        for row in growing:
            slot = slots[id(row)]
            if slot < len(growing):
                kept[slot] = row
            else:
                late.append(row)
        together = any(row.request.search is not None for row in growing)
        if together:  # beams stay side by side
            kept, late = [None] * len(growing), growing
        order = iter(late)
        self.rows = [row or next(order) for row in kept] + [row for row in rows if not row.is_growing]
        for slot, row in enumerate(self.rows):
            if slots[id(row)] != slot and row.cached:
                self.cache.copy(slots[id(row)], slot, 0, row.cached)

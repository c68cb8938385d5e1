"""What the addresses of a server share: its models, its clients, and whether one more request may begin."""

import asyncio
import math
from dataclasses import dataclass, field

from megalm.serve.api.errors import ApiError
from megalm.serve.keeping import Keeper
from megalm.serve.keys import Key, KeyFile
from megalm.serve.meter import Meter
from megalm.serve.metrics import Metrics
from megalm.serve.pool import Pool, ServedModel
from megalm.serve.requests import OpenRequests
from megalm.serve.screen import Screen
from megalm.serve.settings import ServeSettings

REFRESH_SECONDS = 2.0


@dataclass(frozen=True)
class Client:
    """Who asks; limits a minute, None: none."""

    name: str
    requests_per_minute: int | None
    tokens_per_minute: int | None


@dataclass
class Service:
    """A server's state. is_draining: it ends, and takes nothing new. screen: None: texts are not checked."""

    settings: ServeSettings
    pool: Pool
    keys: KeyFile | None
    feedback: Keeper | None = None
    meter: Meter = field(default_factory=Meter)
    metrics: Metrics = field(default_factory=Metrics)
    requests: OpenRequests = field(default_factory=OpenRequests)
    is_draining: bool = False
    screen: Screen | None = None

    def client_of(self, authorization: str | None) -> Client:
        """Who that is, by the header `Authorization`. Raises ApiError (401) for nobody."""
        if self.keys is None:
            return self._client("anyone", None)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401, "no API key: send the header `Authorization: Bearer KEY`", code="invalid_api_key"
            )
        found = self.keys.find(key.strip())
        if found is None:
            raise ApiError(401, "that API key is none of this server's", code="invalid_api_key")
        return self._client(found.name, found)

    def _client(self, name: str, key: Key | None) -> Client:
        limits = self.settings.limits
        return Client(
            name,
            (key and key.requests_per_minute) or limits.requests_per_minute,
            (key and key.tokens_per_minute) or limits.tokens_per_minute,
        )

    def model(self, name: str | None) -> ServedModel:
        """The model called so, the default one without a name. Raises ApiError (404)."""
        if name is None:
            return self.pool.default
        if name not in self.pool.models:
            known = ", ".join(self.pool.models)
            raise ApiError(
                404, f"there is no model {name[:100]!r} here (there are {known})", "model", "model_not_found"
            )
        return self.pool.models[name]

    def writer(self, name: str | None) -> ServedModel:
        """The same of a model that writes texts. Raises ApiError (404, 400)."""
        model = self.model(name)
        if model.is_encoder:
            raise ApiError(
                400, f"{model.name} makes vectors of texts and writes none: ask /v1/embeddings", "model"
            )
        return model

    def begin(self, client: Client) -> None:
        """Count a request of `client`. Raises ApiError where it has to come later."""
        if self.is_draining:
            raise ApiError(503, "the server ends; ask again soon", retry_after=10)
        requests = self.meter.bucket(client.name, "requests", client.requests_per_minute)
        tokens = self.meter.bucket(client.name, "tokens", client.tokens_per_minute)
        for bucket, what in ((requests, "requests"), (tokens, "tokens")):
            if bucket is not None and (seconds := bucket.seconds_until(1)):
                self.metrics.refused.labels(f"{what}_per_minute").inc()
                raise ApiError(
                    429,
                    f"more than {bucket.per_minute} {what} a minute: come back in {seconds} s",
                    code="rate_limit_exceeded",
                    retry_after=seconds,
                )
        if requests is not None:
            requests.take(1)

    def admit(self, model: ServedModel, texts: int, length: int) -> None:
        """Raises ApiError where no copy can be asked, or too many texts wait for the model already.

        texts: that are to come; length: tokens that the longest has room for, its prompt among them.
        """
        if not model.ready:
            raise ApiError(503, f"{model.name} is being started; come back soon", retry_after=5)
        waiting = model.waiting_texts
        if waiting + texts - model.free_rows(length) > self.settings.limits.max_waiting:
            self.metrics.refused.labels("waiting").inc()
            seconds = min(60, 1 + math.ceil(waiting / model.settings.max_rows))
            raise ApiError(
                429,
                f"{waiting} texts wait for {model.name} already: come back in {seconds} s",
                retry_after=seconds,
            )

    def count(self, client: Client, model: ServedModel, prompt: int, written: int) -> None:
        """Count the tokens of a request that is over."""
        self.metrics.tokens.labels(model.name, "prompt").inc(prompt)
        self.metrics.tokens.labels(model.name, "completion").inc(written)
        tokens = self.meter.bucket(client.name, "tokens", client.tokens_per_minute)
        if tokens is not None:
            tokens.take(prompt + written)

    async def watch_keys(self) -> None:
        """Take changes of the key file, for as long as the server lives."""
        while self.keys is not None:
            await asyncio.sleep(REFRESH_SECONDS)
            await asyncio.to_thread(self.keys.refresh)

"""Bodies of requests, as OpenAI's API has them; what is not there is refused, and what goes beyond it is marked."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from megalm.generate.request import LARGEST

Text = Annotated[str, StringConstraints(min_length=1)]
Tokens = list[Annotated[int, Field(ge=0)]]


class Body(BaseModel):
    """Unknown keys are errors: a typing error would go unnoticed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """JSON can spell halves of surrogate pairs, which are no characters."""
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair, which is no character") from None
        except TypeError:  # a body that does not call itself JSON comes as bytes: it is refused as no object
            return value
        return value


class StreamOptions(Body):
    """What a stream tells beside the texts."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class SamplingBody(Body):
    """How texts are continued. top_k, min_p and repetition_penalty go beyond OpenAI's API."""

    model: str | None = None
    n: int | None = Field(1, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=1e-3, le=1e3)
    logit_bias: dict[str, Annotated[float, Field(ge=-LARGEST, le=LARGEST)]] | None = None
    stop: Text | list[Text] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def answers(self) -> int:
        """Texts of each prompt."""
        return self.n or 1


class CompletionBody(SamplingBody):
    """Of /v1/completions."""

    prompt: str | list[str] | Tokens | list[Tokens]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1)
    suffix: str | None = None


class EmbeddingBody(Body):
    """Of /v1/embeddings."""

    model: str | None = None
    input: str | list[str] | Tokens | list[Tokens]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class ContentPart(Body):
    """A part of a message; texts alone can be read."""

    type: Literal["text"]
    text: str


Nothing = Annotated[list[Any], Field(max_length=0)]


class MessageBody(Body):
    """A turn of a conversation; `name` is passed to the template.

    What stands below `name` an answer has, and comes back with it where a client sends the answer's message; only a refusal says something, which `content` says, too.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None
    refusal: str | None = None
    annotations: Nothing | None = None
    tool_calls: Nothing | None = None
    function_call: None = None
    audio: None = None

    def told(self) -> dict[str, Any]:
        """As templates have it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class ResponseFormat(Body):
    """Texts alone are written."""

    type: Literal["text"]


class ChatBody(SamplingBody):
    """Of /v1/chat/completions."""

    messages: Annotated[list[MessageBody], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None

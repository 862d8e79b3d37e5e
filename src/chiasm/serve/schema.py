"""Requests as OpenAI's API has them. Fields we do not know are ignored: clients send many.

Fields beyond OpenAI's: top_k, guidance, max_images, progress.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Request(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    model: str = Field(max_length=200)


class ImageUrl(BaseModel):
    url: str


Url = Annotated[ImageUrl, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v)]


class Part(BaseModel):
    """text, image_url or video_url; others are refused by name."""

    type: str = Field(max_length=40)
    text: str | None = None
    image_url: Url | None = None
    video_url: Url | None = None


class ChatMessage(BaseModel):
    """images: images of an earlier answer, as this server gave them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    images: list[Part] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class JsonSchema(BaseModel):
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class ChatRequest(Request):
    messages: list[ChatMessage] = Field(min_length=1, max_length=500)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    seed: Seed | None = None
    n: Annotated[int, Field(ge=1)] | None = 1
    stop: Annotated[
        list[Annotated[str, Field(max_length=200)]] | None, BeforeValidator(_as_list)
    ] = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text", "image"]] | None = None
    guidance: Guidance | None = None
    max_images: Annotated[int, Field(ge=1, le=8)] | None = None
    progress: bool = False


class LookRequest(ChatRequest):
    """A conversation up to the user's last turn, and the reply that it got."""

    reply: str = Field(min_length=1, max_length=100_000)


class ImageRequest(Request):
    prompt: str = Field(min_length=1, max_length=32_000)
    n: Annotated[int, Field(ge=1)] | None = 1
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    guidance: Guidance | None = None


class EditRequest(ImageRequest):
    """image: data URLs, or the files of a form; mask: where to draw anew, transparent or, without
    transparency, white."""

    image: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
    mask: str | None = None


class EmbeddingRequest(Request):
    """input: a text, or texts and images (parts as in chat)."""

    input: Annotated[list[str | Part], BeforeValidator(_as_list), Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None

"""Images and clips of requests: data URLs, and addresses of hosts that the server was told
(remote.py)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import PIL.Image
import PIL.ImageChops

from chiasm.core.errors import MissingExtraError
from chiasm.core.image import Unreadable, decode, open_image
from chiasm.core.sample import Image, Part
from chiasm.data.clips import Clips
from chiasm.data.video import read_footage
from chiasm.serve.errors import ApiError
from chiasm.serve.limits import Holding, Limits

FORMATS = {"PNG", "JPEG", "WEBP", "GIF"}


def check_url(url: str, limits: Limits, param: str) -> None:
    """Raises ApiError for what is neither a data URL of an image nor of a host to ask. Nothing
    is decoded or fetched."""
    if limits.remote.hosts and url[:8].lower().startswith(("http://", "https://")):
        limits.remote.check(url, param)
        return
    if not url[:11].lower().startswith("data:image/"):
        raise _no_data_url("image", "image/png", url, param)


def check_clip(url: str, param: str) -> None:
    """The same of a clip, which is never fetched."""
    if not url[:11].lower().startswith("data:video/"):
        raise _no_data_url("clip", "video/mp4", url, param)


def _no_data_url(what: str, kind: str, url: str, param: str) -> ApiError:
    found = url.split(":", 1)[0][:10] if ":" in url[:12] else "no"
    return ApiError(
        400,
        f"a {what} must come as a data URL (data:{kind};base64,...), found one with {found!r}; "
        f"this server fetches no such address",
        param,
        "invalid_image_url",
    )


def check_urls(urls: Sequence[tuple[str, str]], limits: Limits, param: str) -> None:
    """check_url of each (URL, param); param: what is to blame where they are too many."""
    if len(urls) > limits.images:
        raise ApiError(400, f"{len(urls)} images, more than the {limits.images} allowed", param)
    for url, own in urls:
        check_url(url, limits, own)


def image_of(url: str, limits: Limits, holding: Holding, param: str) -> Image:
    """The decoded image of a URL that check_url let pass. Size and format are read from its
    header first. Raises ApiError, Busy."""
    data = _measured(url, limits, holding, param)
    try:
        return Image(decode(data))
    except Unreadable as reason:
        raise _bad(f"no readable image: {reason}", param) from None


def mask_of(url: str, limits: Limits, holding: Holding, param: str) -> PIL.Image.Image:
    """Of a mask: white where something is to be drawn. Where OpenAI's are transparent, that is."""
    data = _measured(url, limits, holding, param)
    try:
        with open_image(data) as opened:
            if opened.has_transparency_data:
                return PIL.ImageChops.invert(opened.convert("RGBA").getchannel("A"))
            return opened.convert("L")
    except Exception:  # decoders raise what they like
        raise _bad("no readable mask", param) from None


def clip_of(
    url: str, clips: Clips | None, limits: Limits, holding: Holding, param: str
) -> tuple[Part, ...]:
    """Times and frames of a clip that check_clip let pass, as the model sees it. Raises ApiError,
    Busy, and DataError for one that cannot be read."""
    if clips is None:
        raise _bad("this model sees no clips; send some frames as images", param)
    data = bytes_of(url, limits, holding, param)
    try:
        footage = read_footage(data, clips.config, most=limits.footage)
    except MissingExtraError:
        raise _bad(
            "this server reads no clips: its extra 'video' is not installed", param
        ) from None
    holding.add(sum(4 * frame.width * frame.height for frame in footage.frames))
    return clips.shown(footage)


def bytes_of(url: str, limits: Limits, holding: Holding, param: str) -> bytes:
    """What a URL that check_url let pass stands for. Raises ApiError, Busy."""
    if not url[:5].lower().startswith("data:"):
        data = limits.remote.fetch(url, param)
        holding.add(len(data))
        return data
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _bad("a data URL needs ';base64,' before the bytes", param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the bytes are not valid base64", param) from None


def _measured(url: str, limits: Limits, holding: Holding, param: str) -> bytes:
    """The bytes of an image that says it has no more pixels than allowed, in a known format."""
    data = bytes_of(url, limits, holding, param)
    try:
        with open_image(data) as opened:
            (width, height), kind = opened.size, opened.format
        if kind not in FORMATS:
            raise _bad(f"an image of format {kind}; send PNG, JPEG, WEBP or GIF", param)
        if width * height == 0:
            raise _bad("an image without a pixel", param)
        if width * height > limits.pixels:
            raise _bad(
                f"an image of {width}x{height} has more than the {limits.pixels:,} pixels "
                "allowed; send a smaller one",
                param,
            )
        holding.add(4 * width * height)
        return data
    except Unreadable as reason:
        raise _bad(f"no readable image: {reason}", param) from None


def data_url(image: PIL.Image.Image) -> str:
    return f"data:image/png;base64,{png(image)}"


def png(image: PIL.Image.Image) -> str:
    """base64 of a PNG."""
    import io

    held = io.BytesIO()
    image.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "invalid_image")

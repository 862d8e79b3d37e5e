"""Pictures of requests: data URLs, and addresses of hosts that the server was told (remote.py)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import PIL.Image
import PIL.ImageChops

from chiasm.core.picture import Unreadable, decode, open_picture
from chiasm.core.sample import Image
from chiasm.serve.errors import ApiError
from chiasm.serve.limits import Holding, Limits

FORMATS = {"PNG", "JPEG", "WEBP", "GIF"}


def check_url(url: str, limits: Limits, param: str) -> None:
    """Raises ApiError for what is no data URL of a picture, nor of a host that may be asked, or too
    long; nothing is decoded or fetched."""
    if limits.remote.hosts and url[:8].lower().startswith(("http://", "https://")):
        limits.remote.check(url, param)
        return
    if not url[:11].lower().startswith("data:image/"):
        kind = url.split(":", 1)[0][:10] if ":" in url[:12] else "no"
        raise ApiError(
            400,
            f"a picture must come as a data URL (data:image/png;base64,...), found one with "
            f"{kind!r}; this server fetches no addresses",
            param,
            "invalid_image_url",
        )
    if len(url) > limits.body:
        raise ApiError(413, f"a picture of more than {limits.body:,} characters", param)


def check_urls(urls: Sequence[tuple[str, str]], limits: Limits, param: str) -> None:
    """check_url of each (URL, param); param: what is to blame where they are too many."""
    if len(urls) > limits.images:
        raise ApiError(400, f"{len(urls)} pictures, more than the {limits.images} allowed", param)
    for url, own in urls:
        check_url(url, limits, own)


def picture_of(url: str, limits: Limits, holding: Holding, param: str) -> Image:
    """The decoded picture of a URL that check_url let pass. Size and format are read from its
    header first. Raises ApiError, Busy."""
    data = _measured(url, limits, holding, param)
    try:
        return Image(decode(data))
    except Unreadable as reason:
        raise _bad(f"no readable picture: {reason}", param) from None


def mask_of(url: str, limits: Limits, holding: Holding, param: str) -> PIL.Image.Image:
    """Of a mask: white where something is to be drawn. Where OpenAI's are transparent, that is."""
    data = _measured(url, limits, holding, param)
    try:
        with open_picture(data) as opened:
            if opened.has_transparency_data:
                return PIL.ImageChops.invert(opened.convert("RGBA").getchannel("A"))
            return opened.convert("L")
    except Exception:  # decoders raise what they like
        raise _bad("no readable mask", param) from None


def bytes_of(url: str, limits: Limits, holding: Holding, param: str) -> bytes:
    """What a URL that check_url let pass stands for. Raises ApiError, Busy."""
    if not url[:5].lower().startswith("data:"):
        data = limits.remote.fetch(url, param)
        holding.add(len(data))
        return data
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _bad("a data URL needs ';base64,' before the picture's bytes", param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the picture's bytes are not valid base64", param) from None


def _measured(url: str, limits: Limits, holding: Holding, param: str) -> bytes:
    """The bytes of a picture that says it has no more pixels than allowed, in a known format."""
    data = bytes_of(url, limits, holding, param)
    try:
        with open_picture(data) as opened:
            (width, height), kind = opened.size, opened.format
        if kind not in FORMATS:
            raise _bad(f"a picture of format {kind}; send PNG, JPEG, WEBP or GIF", param)
        if width * height == 0:
            raise _bad("a picture without a pixel", param)
        if width * height > limits.pixels:
            raise _bad(
                f"a picture of {width}x{height} has more than the {limits.pixels:,} pixels "
                "allowed; send a smaller one",
                param,
            )
        holding.add(4 * width * height)
        return data
    except Unreadable as reason:
        raise _bad(f"no readable picture: {reason}", param) from None


def data_url(picture: PIL.Image.Image) -> str:
    return f"data:image/png;base64,{png(picture)}"


def png(picture: PIL.Image.Image) -> str:
    """base64 of a PNG."""
    import io

    held = io.BytesIO()
    picture.save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def _bad(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "invalid_image")

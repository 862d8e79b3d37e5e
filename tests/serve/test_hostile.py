"""What is meant to harm: refused with 4xx, and the server is well afterwards."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
import torch
from serve_toys import KEY, Background, data_url, encoded, http, pixels

from chiasm.serve.limits import Limits
from chiasm.train.throughput import memory_in_use

HEAD = {"Authorization": f"Bearer {KEY}"}
GROWTH = 0.15
"""Gigabytes that this process, server and client, may grow by while it is attacked."""


class Growth(threading.Thread):
    """How much more memory was resident, at most, than when it began: `peak` in GB."""

    def __enter__(self):
        self.began, self.peak, self.over = memory_in_use(torch.device("cpu")), 0.0, False
        self.start()
        return self

    def run(self):
        while not self.over:
            self.peak = max(self.peak, memory_in_use(torch.device("cpu")) - self.began)
            time.sleep(0.002)

    def __exit__(self, *_):
        self.over = True
        self.join()


@pytest.fixture(scope="module")
def at_first(running):
    """GB resident once what is made on first use is made."""
    for number in range(3):
        assert seen(running, data_url(pixels(number, (800, 800)))).status_code == 200
    return memory_in_use(torch.device("cpu"))


@pytest.fixture(autouse=True)
def well_afterwards(running, at_first):
    with Growth() as growth:
        yield
    assert http.get(f"{running.url}/health").status_code == 200
    assert running.idle()
    reply = post(running, {"messages": [{"role": "user", "content": "red"}], "max_tokens": 2})
    assert reply.status_code == 200
    assert growth.peak < GROWTH
    assert memory_in_use(torch.device("cpu")) - at_first < GROWTH  # all attacks so far together


def post(running, body, **options):
    body = {"model": "reads", **body} if isinstance(body, dict) else body
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{running.url}/v1/chat/completions"
    return http.post(url, content=content, headers=HEAD, timeout=300, **options)


def seen(running, *urls):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return post(running, {"messages": [{"role": "user", "content": parts}]})


def refused(reply, status=400):
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["message"]
    for leak in ("/work", "/home", "/tmp", "site-packages", "Traceback", ".py"):
        assert leak not in reply.text
    return error


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:22/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://localtest.me/a.png",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "//example.org/a.png",
        "/etc/passwd",
        "",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png,notbase64",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,iVBORw0KGgo=",
        "data:image/png;base64,\u00e9\u00e9",
    ],
)
def test_no_address_is_fetched_and_no_nonsense_is_read(running, url):
    refused(seen(running, url))


def png_of(width, height):
    """A PNG whose header says so, with next to no data."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (2_000_000_000, 1), (1001, 1000), (0, 5)])
def test_pixels_are_counted_before_they_are_unpacked(running, size):
    url = "data:image/png;base64," + base64.b64encode(png_of(*size)).decode()
    began = time.monotonic()
    refused(seen(running, url))
    assert time.monotonic() - began < 30


def test_other_formats_and_broken_files_are_refused(running):
    tiff = base64.b64encode(encoded(pixels(0), "TIFF")).decode()
    refused(seen(running, f"data:image/png;base64,{tiff}"))
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
    refused(seen(running, f"data:image/png;base64,{eps}"))
    short = base64.b64encode(encoded(pixels(0, (400, 400)), "PNG")[:2000]).decode()
    refused(seen(running, f"data:image/png;base64,{short}"))


def test_of_a_gif_of_many_frames_one_is_decoded(running):
    held = io.BytesIO()
    frames = [PIL.Image.new("P", (200, 200), i % 250) for i in range(300)]
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    url = "data:image/gif;base64," + base64.b64encode(held.getvalue()).decode()
    assert seen(running, url).status_code == 200


def test_too_many_images_are_refused_before_any_is_decoded(running):
    error = refused(seen(running, *["data:image/png;base64,AAAA"] * 100))
    assert "100 images" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "reads"}',
        b'{"model": 5, "messages": []}',
        b'{"model": "reads", "messages": "hello"}',
        b'{"model": "reads", "messages": [{"role": "robot", "content": "x"}]}',
        b'{"model": "reads", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "reads", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"model": "reads", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
        b'{"model": "reads", "messages": [{"role": "user"}]}',
        b'{"model": "reads", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "reads", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "reads", "seed": ' + b"9" * 100_000 + b"}",
    ],
)
def test_a_wrong_body_is_400(running, body):
    refused(post(running, body))


def test_a_large_body_is_refused_by_its_length(running):
    huge = b'{"model": "reads", "x": "' + b"a" * 4_000_000 + b'"}'
    refused(post(running, huge), 413)


def raw(running, *parts):
    """What comes back for bytes sent piece by piece."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=120) as link:
        found = b""
        try:
            for part in parts:
                link.sendall(part)
            while part := link.recv(65536):
                found += part
                if b"\r\n\r\n" in found and b"error" in found:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
        return found


def head(length, key=KEY):
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_a_slow_body_is_given_up(toys):
    with Background({"reads": toys["reads"]}, Limits(body_seconds=0.3)) as hasty:
        assert b" 408 " in raw(hasty, head(1000), b'{"model"')


def test_without_the_key_the_body_is_not_even_read(running):
    assert b" 401 " in raw(running, head(10**9, "wrong"))
    assert b" 413 " in raw(running, head(10**9))


def test_a_chunked_body_is_cut_off(running):
    start = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    )

    def piece(size):
        return b"%x\r\n" % size + b" " * size + b"\r\n"

    most = running.server.limits.body
    assert b" 413 " in raw(running, start, *[piece(500_000)] * (most // 500_000), piece(1))


@pytest.mark.parametrize(
    "lines",
    [
        b"X: " + b"a" * 200_000,
        b"\r\n".join(b"X%d: a" % i for i in range(20_000)),
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked, gzip",
        b"No colon",
    ],
)
def test_abused_headers(running, lines):
    found = raw(running, b"POST /v1/models HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\n")
    assert found == b"" or found.split()[1].startswith(b"4")


@pytest.mark.parametrize("value", [b"Bearer", b"Basic abc", b"Bearer \xff\xfe", b"Bearer a, b"])
def test_odd_keys_are_wrong_keys(running, value):
    line = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + value
    assert b" 401 " in raw(running, line + b"\r\n\r\n")


def test_whoever_goes_away_frees_the_rows(running):
    body = json.dumps(
        {
            "model": "reads",
            "messages": [{"role": "user", "content": "what is it?"}],
            "n": 6,
            "temperature": 2,
            "max_tokens": 64,
        }
    ).encode()
    for stream in (b"", b', "stream": true'):
        asked = body[:-1] + stream + b"}"
        with socket.create_connection(("127.0.0.1", running.port)) as link:
            link.sendall(head(len(asked)) + asked)
            time.sleep(0.01)
        assert running.idle()


def test_an_image_marker_in_words_is_words(running):
    reply = post(running, {"messages": [{"role": "user", "content": "a <image> b"}]})
    assert reply.status_code == 200


def test_methods_and_routes_that_are_not(running):
    for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("GET", "/x")):
        reply = http.request(method, running.url + path, headers=HEAD)
        assert reply.status_code in (404, 405)
        assert reply.json()["error"]["type"]


def test_a_large_schema_does_not_hold_the_server_up(running):
    schema = {"type": "string", "pattern": "(a|b|c|d|e)*" * 50 + "(.{1,500}x){1,500}"}
    began = time.monotonic()
    reply = post(
        running,
        {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 2,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        },
    )
    assert reply.status_code in (200, 400)
    assert time.monotonic() - began < 60


def test_decoded_images_have_a_budget(running, monkeypatch):
    monkeypatch.setattr(running.server.budget, "limit", 100_000)
    error = refused(seen(running, data_url(pixels(0, (200, 200)))), 429)
    assert error["code"] == "server_busy"


def test_a_crowd_of_the_largest_requests_is_held_within_the_budget(running, monkeypatch):
    """32 at once of 4 images, unpacked 16 MB each request and 512 MB together."""
    monkeypatch.setattr(running.server.budget, "limit", 50_000_000)
    flat = data_url(PIL.Image.new("RGB", (1000, 1000), "red"))
    with ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(lambda _: seen(running, *[flat] * 4).status_code, range(32)))
    assert set(replies) == {200, 429}

"""Addresses of images: named hosts only, connected to where the name was checked to lead."""

import base64
import http.server
import ipaddress
import threading
import time
from contextlib import suppress

import pytest
from serve_toys import Background, encoded, pixels
from test_hostile import refused, seen

from chiasm.serve.errors import ApiError
from chiasm.serve.limits import Limits
from chiasm.serve.remote import Remote, is_public


class Host(http.server.BaseHTTPRequestHandler):
    asked: list = []  # noqa: RUF012 -- of the whole module

    def do_GET(self):
        Host.asked.append((self.path, self.headers["Host"]))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        if self.path == "/slow":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            with suppress(OSError):  # until the other side has had enough
                for _ in range(200):
                    self.wfile.write(b"X")
                    time.sleep(0.05)
            return
        body = encoded(pixels(1)) if self.path == "/a.png" else b"\0" * 200_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (self.path == "/short")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def port():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def remote(**settings):
    """Leads the name images.example to this machine, and lets it."""
    found = {"resolve": lambda *_: ["127.0.0.1"], "permits": lambda _: True, "bytes": 100_000}
    return Remote(frozenset({"images.example"}), seconds=1.0, **(found | settings))


def test_a_named_host_is_asked_by_its_name_at_the_checked_address(port):
    url = f"http://images.example:{port}/a.png"
    assert remote().fetch(url, "x") == encoded(pixels(1))
    assert Host.asked[-1] == ("/a.png", f"images.example:{port}")


@pytest.mark.parametrize("path", ["/redirect", "/large", "/slow", "/short"])
def test_what_a_host_may_not_do(port, path):
    began = time.monotonic()
    bytes_ = 300_000 if path == "/short" else 100_000
    with pytest.raises(ApiError):
        remote(bytes=bytes_).fetch(f"http://images.example:{port}{path}", "x")
    assert time.monotonic() - began < 5
    assert Host.asked[-1][0] == path  # a redirect is not followed


def test_a_name_is_resolved_once_and_all_it_leads_to_must_be_public(port):
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    calls = []

    def rebinding(*_):
        calls.append(1)
        return next(answers)

    before = len(Host.asked)
    found = Remote(frozenset({"images.example"}), seconds=0.3, resolve=rebinding)
    with pytest.raises(ApiError, match="could not be fetched"):  # this test has no such network
        found.fetch(f"http://images.example:{port}/a.png", "x")
    assert len(calls) == 1
    for mixed in (["93.184.216.34", "127.0.0.1"], ["::ffff:10.0.0.1"], ["fe80::1"], []):
        found = Remote(frozenset({"images.example"}), resolve=lambda *_, m=mixed: m)
        with pytest.raises(ApiError, match="open internet"):
            found.fetch(f"http://images.example:{port}/a.png", "x")
    assert len(Host.asked) == before


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
     "100.64.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "fc00::1",
     "fe80::1", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe"],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet(address):
    assert not is_public(ipaddress.ip_address(address))


def test_addresses_that_are():
    for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"):
        assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["http://other.example/a.png", "http://127.0.0.1/a.png", "http://2130706433/", "ftp://images.example/a",
     "http://images.example@127.0.0.1/", "http://127.0.0.1\\@images.example/", "http://images.example:99999/",
     "http://images.example\t/", "http://ımages.example/", "http://[::1]/", "http://images.example./a"],
)  # fmt: skip
def test_only_named_hosts_are_asked(url):
    before = len(Host.asked)
    with pytest.raises(ApiError):
        remote().fetch(url, "x")
    assert len(Host.asked) == before


def test_a_server_that_was_told_a_host(toys, port):
    limits = Limits(remote=remote(), pixels=1_000_000)
    with Background({"reads": toys["reads"]}, limits) as running:
        url = f"http://images.example:{port}"
        answered = seen(running, f"{url}/a.png")
        assert answered.status_code == 200
        data = "data:image/png;base64," + base64.b64encode(encoded(pixels(1))).decode()
        same = seen(running, data).json()
        assert answered.json()["choices"] == same["choices"]
        for wrong in (f"{url}/redirect", f"{url}/large", "http://127.0.0.1/a.png", "http://x/"):
            refused(seen(running, wrong))
        assert running.idle()

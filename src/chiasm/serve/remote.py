"""Images from addresses, of hosts that whoever runs the server has named. Off by default.

A name is resolved once; each address it has must be public, and the connection goes to the one that
was checked, so that a name that changes its mind meanwhile (DNS rebinding) gains nothing. No
redirect is followed. Bytes and seconds are capped, those of a slow header too.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from chiasm.serve.errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses of this network are IPv4 ones in another dress."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, however it is dressed."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address in NAT64 or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host. Raises OSError."""
    return [found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]  # type: ignore[misc]


@dataclass(frozen=True)
class Remote:
    """hosts: exact names that may be fetched from. bytes, seconds: of one image."""

    hosts: frozenset[str] = frozenset()
    bytes: int = 16 * 2**20
    seconds: float = 10.0
    resolve: Callable[[str, int], list[str]] = resolve
    permits: Callable[[Address], bool] = is_public

    def check(self, url: str, param: str) -> tuple[str, int]:
        """(host, port). Raises ApiError for an address that is not of a named host; nothing is
        asked yet."""
        host, port = self._place(url, param)
        if host not in self.hosts:
            known = f"of {', '.join(sorted(self.hosts))}" if self.hosts else "at all"
            raise _refused(f"this server fetches no addresses {known}; send a data URL", param)
        return host, port

    def fetch(self, url: str, param: str) -> bytes:
        """The bytes at an address: not for the event loop. Raises ApiError."""
        host, port = self.check(url, param)
        try:
            addresses = [ipaddress.ip_address(found) for found in self.resolve(host, port)]
        except (OSError, ValueError):
            raise _refused("the image's host has no address", param) from None
        if not addresses or not all(map(self.permits, addresses)):
            raise _refused("the image's host is not on the open internet", param)
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        link = _Pinned(host, port, str(addresses[0]), parts.scheme == "https", self.seconds)
        late = threading.Timer(self.seconds, link.cut)  # however slowly bytes trickle
        late.start()
        try:
            link.request("GET", path, headers={"User-Agent": "chiasm", "Accept": "image/*"})
            found = self._body(link.getresponse(), param)
            if link.late:  # what was read of it looks like its end
                raise _refused("the image's host took too long", param)
            return found
        except (OSError, ValueError, http.client.HTTPException):
            raise _refused("the image could not be fetched", param) from None
        finally:
            late.cancel()
            link.close()

    def _body(self, answer: http.client.HTTPResponse, param: str) -> bytes:
        if answer.status != 200:
            follows = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            raise _refused(f"the image's host answered {answer.status}{follows}", param)
        parts, length = [], 0
        while part := answer.read1(65536):
            length += len(part)
            if length > self.bytes:
                raise _refused(f"an image of more than {self.bytes:,} bytes", param)
            parts.append(part)
        if answer.length:
            raise _refused("the image did not come whole", param)
        return b"".join(parts)

    def _place(self, url: str, param: str) -> tuple[str, int]:
        """(host, port)"""
        try:
            parts = urlsplit(url)
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        except (KeyError, ValueError):
            raise _refused("an image must come as a data URL or from http(s)", param) from None
        if not url.isascii() or any(c <= " " or c == "\\" for c in url) or "@" in parts.netloc:
            raise _refused("an address must be plain: no users, blanks or other letters", param)
        return (parts.hostname or "").lower(), port


class _Pinned(http.client.HTTPConnection):
    """Connects to one address, whatever the host's name says by now."""

    def __init__(self, host: str, port: int, address: str, secure: bool, seconds: float):
        super().__init__(host, port, timeout=seconds)
        self.address, self.secure, self.late = address, secure, False

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """From another thread: whoever reads hears the end."""
        held, self.late = self.sock, True
        if held is not None:
            with suppress(OSError):  # closed already
                held.shutdown(socket.SHUT_RDWR)


def _refused(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "invalid_image_url")

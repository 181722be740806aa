"""One JSON request to an HTTP endpoint, asked again until it is answered: retries, back-off, rate limit, time limits.

Imports neither torch nor, before the first request, an HTTP library.
"""

from __future__ import annotations

import ipaddress
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from edgekd.errors import MissingExtra, StageFailed, UsageError

if TYPE_CHECKING:
    import httpx2

# Far above any answer to a batch; whoever sends more is not a teacher.
MAX_RESPONSE_BYTES = 256 << 20
# Nobody waits longer for one answer to be allowed; a quota that long is for the next run.
MAX_WAIT_S = 120.0
FIRST_WAIT_S = 0.5
# Not now: busy, overloaded, behind a proxy that lost its server.
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_SECRETS = frozenset({"key", "apikey", "api_key", "api-key", "token", "access_token", "secret", "password", "sig"})
_SHOWN = 120


@dataclass(frozen=True)
class RequestOptions:
    """How an endpoint is asked.

    batch_size  samples per request
    timeout_s   for one request, from connecting to the last byte, however slowly they come
    retries     further attempts after a failure that may pass
    per_s       requests per second at most; None: as fast as it answers
    encoding    inputs as nested lists ("json") or as a base64 text of an .npy file ("npy")
    headers     names of headers, and the value of each
    insecure    also plain http to other machines
    """

    batch_size: int = 32
    timeout_s: float = 60.0
    retries: int = 5
    per_s: float | None = None
    encoding: str = "json"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    insecure: bool = False


class _Again(Exception):
    """This attempt failed in a way that may pass; `wait_s` is what the server asked for."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _Line:
    """A client with one connection, which stays open from request to request and is ended when one takes too long.

    The HTTP library's limits are for each part of an answer alone: who sends a byte now and then keeps to them.
    """

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self.is_over = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End the connection when the block takes longer; `is_over` then says so."""
        self.is_over = False
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # or it would end the next request

    def notice(self, event: str, info: Mapping[str, Any]) -> None:
        """Take the socket from what the HTTP library tells of each of its steps (its extension `trace`)."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.is_over:
                self._end()

    def _end(self) -> None:
        self.is_over = True
        with self._lock, suppress(OSError):  # closed already
            if self._socket is not None:
                # Not the method of a TLS socket: that one forgets its keys, and whoever reads is surprised.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Endpoint:
    """Posts JSON to one URL, from several threads at once too, each on a connection of its own.

    `sleep`, `clock` (seconds that only grow) and `now` (seconds since 1970) are the world; `timeout_s` is real time.

    Raises `UsageError` for a URL that must not be used, `MissingExtra` without the HTTP library, and `StageFailed`
    when there is no answer after all retries, or one that cannot be read: what was answered before is kept.
    """

    def __init__(
        self,
        url: str,
        options: RequestOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        seed: int = 0,
    ) -> None:
        check_url(url, insecure=options.insecure)
        self.name = shown_url(url)
        self._url = url
        self._options = options
        self._sleep, self._clock, self._now = sleep, clock, now
        self._random = random.Random(seed)
        self._next = -math.inf
        self._turn = threading.Lock()
        self._lines: list[_Line] = []
        try:
            self._free = [self._open_line()]
        except ImportError as error:
            raise MissingExtra("httpx2", "http", purpose="a teacher behind a URL") from error

    def post(self, body: Mapping[str, Any]) -> Any:
        """The JSON that the endpoint answers `body` with."""
        content = json.dumps(body, allow_nan=False).encode()
        attempts = self._options.retries + 1
        for attempt in range(attempts):
            self._keep_rate()
            try:
                return self._attempt(content)
            except _Again as error:
                if attempt + 1 == attempts:
                    tried = "once" if attempts == 1 else f"{attempts} times"
                    raise StageFailed(
                        f"{self.name} gave no answer, asked {tried}: {error}. Answers so far are kept; run the same "
                        "command again when it works, or raise teacher.request.retries or timeout_s"
                    ) from error
                self._sleep(self._wait(attempt, error))
        raise AssertionError("every attempt returns or raises")

    def close(self) -> None:
        """Close the connections."""
        for line in self._lines:
            line.client.close()

    def _attempt(self, content: bytes) -> Any:
        import httpx2

        too_late = f"no whole answer within {self._options.timeout_s:g} s"
        with self._line() as line:
            try:
                with line.limited(self._options.timeout_s):
                    response, body = self._ask(line, content)
            except httpx2.RequestError as error:
                if line.is_over or isinstance(error, httpx2.TimeoutException):
                    raise _Again(too_late) from error
                if isinstance(error, httpx2.DecodingError):
                    raise StageFailed(f"{self.name} answered what cannot be unpacked ({error})") from error
                raise _Again(f"the connection failed ({str(error) or type(error).__name__})") from error
            if line.is_over:  # an answer without a length ends with its connection: this may be half of it
                raise _Again(too_late)
        return self._judge(response, body)

    def _ask(self, line: _Line, content: bytes) -> tuple[httpx2.Response, bytes]:
        headers, extensions = {"content-type": "application/json"}, {"trace": line.notice}
        with line.client.stream("POST", self._url, content=content, headers=headers, extensions=extensions) as response:
            return response, self._read(response)

    @contextmanager
    def _line(self) -> Iterator[_Line]:
        """A connection that nobody else uses until the end of the block."""
        with self._turn:
            line = self._free.pop() if self._free else self._open_line()
        try:
            yield line
        finally:
            self._free.append(line)

    def _open_line(self) -> _Line:
        import httpx2

        client = httpx2.Client(
            headers={"accept": "application/json", **self._options.headers},
            timeout=self._options.timeout_s,
            follow_redirects=False,  # neither the samples nor the headers go anywhere else
            trust_env=not is_local(urlsplit(self._url).hostname or ""),
        )
        self._lines.append(_Line(client))
        return self._lines[-1]

    def _read(self, response: httpx2.Response) -> bytes:
        parts: list[bytes] = []
        size = 0
        for part in response.iter_bytes():
            size += len(part)
            if size > MAX_RESPONSE_BYTES:
                raise StageFailed(
                    f"{self.name} answered more than {MAX_RESPONSE_BYTES >> 20} MiB to one request; expected numbers "
                    f"for {self._options.batch_size} samples. Is this the right URL?"
                )
            parts.append(part)
        return b"".join(parts)

    def _judge(self, response: httpx2.Response, body: bytes) -> Any:
        status, kind = response.status_code, response.headers.get("content-type", "no content type")
        if status in AGAIN:
            raise _Again(f"status {status}, {_begin(body)}", _retry_after(response, self._now()))
        if 300 <= status < 400:
            target = shown_url(response.headers.get("location", "nowhere"))
            raise StageFailed(
                f"{self.name} sends on to {target} (status {status}); samples and headers are not sent elsewhere. "
                "Give the final URL as teacher.url"
            )
        if status in (401, 403):
            raise StageFailed(
                f"{self.name} refuses us (status {status}, {_begin(body)}); does teacher.request.headers name the "
                "variable with the right credential?"
            )
        if status != 200:
            raise StageFailed(f"{self.name} answered status {status}, {_begin(body)}; expected status 200")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise StageFailed(
                f"{self.name} answered no JSON but {kind}, {_begin(body)}; expected an object with logits, "
                "probabilities, topk or labels. Is this the right URL?"
            ) from error

    def _wait(self, attempt: int, error: _Again) -> float:
        """Seconds until the next attempt: twice as long each time, with jitter, and what the server asked for at least.

        It may ask for none, or for a time that by our clock is over.
        """
        asked_s = 0.0 if error.wait_s is None else error.wait_s
        if asked_s > MAX_WAIT_S:
            raise StageFailed(
                f"{self.name} wants us to wait {asked_s:.0f} s ({error}); run the same command again then: "
                "answers so far are kept"
            ) from error
        # Full jitter over the upper half: many clients that failed together do not come back together.
        own_s = min(FIRST_WAIT_S * 2.0**attempt, MAX_WAIT_S) * (0.5 + 0.5 * self._random.random())
        return max(own_s, asked_s)

    def _keep_rate(self) -> None:
        if self._options.per_s is None:
            return
        with self._turn:  # each request takes a place in the row, however many wait
            now = self._clock()
            place = max(self._next, now)
            self._next = place + 1.0 / self._options.per_s
        if place > now:
            self._sleep(place - now)


@contextmanager
def open_endpoint(url: str, options: RequestOptions) -> Iterator[Endpoint]:
    """An endpoint that is closed at the end of the block."""
    endpoint = Endpoint(url, options)
    try:
        yield endpoint
    finally:
        endpoint.close()


def check_url(url: str, *, insecure: bool = False, key: str = "teacher") -> None:
    """Raise `UsageError` unless samples may be sent to `url`: https, or http to this machine or when `insecure`.

    key  the recipe's table, for the errors
    """
    shown = shown_url(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{key}.url: {shown} is no URL ({error}); expected https://HOST/PATH") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"{key}.url: found {shown}, expected https://HOST/PATH")
    named = {name.lower() for name, _ in parse_qsl(parts.query)} & _SECRETS
    if parts.username is not None or parts.password is not None or named:
        raise UsageError(
            f"{key}.url: {shown} holds a credential, and recipes are kept and passed on; put it into an environment "
            f'variable and name that: {key}.request.headers = {{Authorization = "MY_VARIABLE"}}'
        )
    if parts.scheme == "http" and not insecure and not is_local(host):
        raise UsageError(
            f"{key}.url: {shown} would send the samples in the clear; use https, or {key}.request.insecure = true"
        )


def is_local(host: str) -> bool:
    """Whether a host name is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def shown_url(url: str) -> str:
    """The URL as it may be printed: without user, password and query."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "the URL"
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else f"'{parts.path[:_SHOWN]}'"


def _retry_after(response: httpx2.Response, now: float) -> float | None:
    """Seconds by the header Retry-After (RFC 9110, 10.2.3: a number, or a date); None where it says nothing."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - now, 0.0)
    except (ValueError, TypeError):
        return None


def _begin(body: bytes) -> str:
    text = " ".join(body[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return f"beginning with '{text[:_SHOWN]}'" if text else "an empty body"

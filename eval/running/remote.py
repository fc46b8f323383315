"""Questions for a server: `Ask`, what a `Backend` answers it with, and the backend that asks over HTTP.

`RemoteBackend` asks ckcontrol's OpenAI-compatible server, many questions at a time.

Request: ``POST {base_url}/chat/completions`` with the bare question as the user's message and the object ``ck`` beside
it: the passages, the fields of the control, and those of the prompt template where one is given. The server builds
both prompts. It must repeat ``ck`` in its reply: a server that does not know the field would answer closed-book and
nobody would notice, so such an answer is an error here. A failed question is a sample that says why, so that one bad
question, or one bad minute of a server, never costs the answers already paid for.

Standard library only. Knows HTTP, retries and threads; knows nothing of models, scoring or files.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ckcontrol.arguments import check_integer, check_number
from ckcontrol.control import Control
from ckcontrol.errors import ControlError, PromptError

from ..run_files import Sample

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["Ask", "Backend", "RemoteBackend"]

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0  # seconds, also for a Retry-After that asks for more
LARGEST_REPLY = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Ask:
    """One question as a server gets it.

    Attributes:
        question: The question, or the text to complete; the server puts it into the prompt.
        passages: May be empty: closed book.
        control: Policy and dial; ``Control()`` is the unmodified model.
        max_new_tokens: Longest answer, in tokens.
        template: Wording of the prompts; None is the server's default, `PromptTemplate()`.

    Raises:
        PromptError: `passages` is one string.
    """

    question: str
    passages: tuple[str, ...] = ()
    control: Control = field(default_factory=Control)
    max_new_tokens: int = 64
    template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if isinstance(self.passages, str):
            raise PromptError("passages is one string.", "Pass a list: passages=[text].")
        object.__setattr__(self, "passages", tuple(self.passages))


class Backend(Protocol):
    """Whatever stands behind a server's address."""

    def answer(self, requests: Sequence[Ask]) -> list[Sample]:
        """Return one sample per request, in order: text, n and finish, or an error. No single failure is raised."""


class RemoteBackend:
    """Answers by asking a server. Safe to use from several threads; holds no connection between calls.

    Args:
        base_url: Up to and including the version, ``http://host:8000/v1``.
        model: The model's name at the server.
        concurrency: Requests in flight at once.
        timeout: Seconds the server may be silent; an attempt whose reply is still dripping in after that is given up.
        retries: Further attempts after the first, on 408, 425, 429, 500, 502, 503, 504, a lost or refused connection,
            a timeout, or a reply that is not JSON. Other refusals are final.
        backoff: Seconds before the first retry; doubled each time, with jitter, at most 60. A server's
            ``Retry-After``, in seconds, counts where it is longer.
        api_key_env: Environment variable that holds the API key, read at every call and sent as a bearer token;
            nothing is sent when it is unset. No message shows the key, and no redirect is followed with it.

    Raises:
        ControlError: `base_url` is not an http(s) address, or a number is out of range.

    >>> RemoteBackend("http://gpu:8000/v1", "my-model").answer([Ask("Who wrote Faust?")])  # doctest: +SKIP
    [{'text': 'Goethe', 'n': 4, 'finish': 'stop'}]
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 0.5,
        api_key_env: str = "CKCONTROL_API_KEY",
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            shown = f"{parts.scheme}://{parts.hostname}" if parts.username else base_url
            raise ControlError(f"base_url={shown!r} is not a plain http(s) address.", 'Like "http://host:8000/v1".')
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.concurrency = check_integer("concurrency", concurrency, 1, 1024)
        self.timeout = check_number("timeout", timeout, 0.001, 86_400.0)
        self.retries = check_integer("retries", retries, 0, 100)
        self.backoff = check_number("backoff", backoff, 0.0, LONGEST_WAIT)
        self.api_key_env = api_key_env
        self._opener = urllib.request.build_opener(_NoRedirect)

    def answer(self, requests: Sequence[Ask]) -> list[Sample]:
        """Return one sample per request, in order; one that failed for good holds ``error`` alone.

        ``n`` counts the tokens, the end token included; None where the server does not say.

        Raises:
            ControlError: The API key cannot be sent.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ControlError(f"the API key in ${self.api_key_env} cannot be sent in an HTTP header.", "Set it anew.")
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="ckcontrol-remote")
        try:
            return list(pool.map(lambda ask: self._answer(ask, key), requests))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # on Ctrl-C: what has not begun never does

    def _answer(self, ask: Ask, key: str) -> Sample:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(_body(self.model, ask)).encode()
        tried, wait = 0, self.backoff
        while True:
            try:
                return _sample(self._post(body, headers))
            except _Failure as failure:
                tried += 1
                if not failure.retryable or tried > self.retries:
                    text = f"{failure} (tried {tried} times)" if tried > 1 else str(failure)
                    return {"error": text.replace(key, "[API key]") if key else text}
                time.sleep(min(max(wait * random.uniform(0.5, 1.0), failure.wait), LONGEST_WAIT))
                wait = min(2 * wait, LONGEST_WAIT)

    def _post(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return the decoded reply of one attempt; every failure leaves as `_Failure`."""
        request = urllib.request.Request(self.url, data=body, headers=dict(headers), method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise _Failure(_refusal(error), error.code in RETRYABLE, _retry_after(error.headers)) from None
        except TimeoutError:
            raise _Failure(f"no answer within {self.timeout:g} s", True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Failure(f"no answer within {self.timeout:g} s", True) from None
            raise _Failure(f"connection failed: {type(reason).__name__}: {reason}", True) from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise _Failure(f"the reply is not JSON: {_short(text)!r}", True) from None


class _Failure(Exception):
    """An attempt that failed; caught by `RemoteBackend._answer`, never seen outside."""

    def __init__(self, message: str, retryable: bool, wait: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would repeat a POST as a GET, and hand the key to whatever host it was sent to."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse; the redirect then arrives as the HTTP error it is."""


def _body(model: str, ask: Ask) -> dict[str, Any]:
    ck: dict[str, Any] = {"passages": list(ask.passages), **ask.control.to_dict()}
    if ask.template is not None:
        ck["template"] = ask.template.to_dict()
    variables = ck.get("template", {}).pop("template_kwargs", None)
    messages = [{"role": "user", "content": ask.question}]
    return {"model": model, "messages": messages, "max_tokens": ask.max_new_tokens, "temperature": 0, "ck": ck} | (
        {"chat_template_kwargs": variables} if variables else {}
    )


def _sample(data: Any) -> Sample:
    """Return what the server said, or raise `_Failure` where that is not an answer to our question."""
    try:
        choice = data["choices"][0]
        text, finish = choice["message"]["content"] or "", choice["finish_reason"]
        tokens = (data.get("usage") or {}).get("completion_tokens")
    except (LookupError, TypeError, AttributeError):
        raise _Failure(f"the reply is not a chat completion: {_short(json.dumps(data))!r}", False) from None
    if not isinstance(text, str) or finish not in ("stop", "length"):
        raise _Failure(f"the reply ended with finish_reason={finish!r}", False)
    if not isinstance(data.get("ck"), dict):
        raise _Failure("the server ignored the field ck, so nothing was steered; is it ckcontrol's server?", False)
    return {"text": text.strip(), "n": tokens if isinstance(tokens, int) else None, "finish": finish}


def _read(response: Any, deadline: float) -> bytes:
    """Read to the end; the socket's own timeout is per read, so a server that drips would never meet it."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            raise _Failure(f"the reply exceeds {LARGEST_REPLY:,} bytes", False)
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # read1 does not tell a cut connection from the end
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts)


def _refusal(error: urllib.error.HTTPError) -> str:
    """Return status and, where the body holds OpenAI's error object, its message."""
    try:
        text: str | bytes = error.read(65536)
    except (OSError, http.client.HTTPException):
        text = b""
    try:
        found = json.loads(text)["error"]
        text = str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    detail = _short(text)
    return f"HTTP {error.code}" + (f": {detail}" if detail else "")


def _retry_after(headers: Any) -> float:
    value = str(headers.get("Retry-After", "")).strip()
    return float(value) if value.isdigit() else 0.0  # the other form, a date, is left to the backoff


def _short(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    return " ".join(text.split())[:300]

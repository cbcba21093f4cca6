"""A language model behind an OpenAI-compatible chat endpoint (a service, vLLM, llama.cpp, ...)."""

import dataclasses
import datetime
import email.utils
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Protocol

from big_mm.curation.asking import Unavailable
from big_mm.spec import UserError

# Worth another try: timeouts and conflicts, too many requests, and what is the service's own fault.
_PASSING = frozenset({408, 409, 425, 429})
# A status of "too many requests" that does not pass.
_NO_MONEY = "insufficient_quota"
_HOUR = 3600.0
_HINTS = {
    401: "the key is that of the environment variable key=$key",
    403: "the key is that of the environment variable key=$key",
    404: "url must be the part before /chat/completions, and the model one that is served there",
}


class LanguageModel(Protocol):
    """Writes a text; a frozen dataclass, called by several threads."""

    def request(self, prompt: str, seed: int) -> bytes:
        """Everything that the answer depends on."""

    def ask(self, request: bytes) -> str:
        """The answer; "" if there is none. Raises `asking.Unavailable` and UserError."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """The model as a service. Keys are read from the environment and stored nowhere.

    Sampling is by default as LaCLIP's (arXiv:2305.20088): its answers have at most 77 tokens.

    Attributes:
      url: up to but without /chat/completions, as "http://localhost:8000/v1".
      model: as the service names it.
      key: the environment variable that holds the key; None for a service that needs none.
      timeout: seconds without a byte after which a request is given up, and made again.
      further: more of the request's body, or what replaces it; None leaves a field out
        (`{"seed": None, "max_tokens": None, "max_completion_tokens": 77}`).
    """

    url: str
    model: str
    key: str | None = "OPENAI_API_KEY"
    temperature: float = 0.9
    top_p: float = 0.95
    max_tokens: int = 77
    timeout: float = 60.0
    further: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"url={self.url!r} must begin with http:// or https://")

    def request(self, prompt: str, seed: int) -> bytes:
        """The body of the request."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        body |= dict(self.further or {})
        body = {name: value for name, value in body.items() if value is not None}
        return json.dumps(body, sort_keys=True).encode()

    def ask(self, request: bytes) -> str:
        """Sends the body, and returns the text of the first choice.

        Raises:
          Unavailable: too many requests, an error of the service, a timeout, no connection.
          UserError: any other refusal, no key, or an answer of another form.
        """
        url = f"{self.url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"} | self._authorization()
        try:
            made = urllib.request.Request(url, request, headers)
            with _OPENER.open(made, timeout=self.timeout) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error, url) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unavailable(f"{url}: {reason or type(error).__name__}") from error
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError(f"content is {type(text).__name__}")
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{url} answers no chat completion: {_begin(answer)!r}") from error
        return text or ""

    def _authorization(self) -> dict[str, str]:
        if self.key is None:
            return {}
        key = os.environ.get(self.key, "").strip()
        if not key or not (key.isascii() and key.isprintable()):
            raise UserError(
                f"the environment variable {self.key} holds no key (key=None: the service needs "
                "none)"
            )
        return {"Authorization": f"Bearer {key}"}

    def _refused(self, error: urllib.error.HTTPError, url: str) -> Exception:
        try:
            said = error.read()
        except (OSError, http.client.HTTPException):
            said = b""
        text = f"{url}: {error.code} {error.reason} {_begin(said)}".strip()
        passes = error.code in _PASSING or error.code >= 500
        if passes and _NO_MONEY.encode() not in said:
            return Unavailable(text, _seconds(error.headers.get("Retry-After")))
        hint = _HINTS.get(error.code, "").replace("$key", repr(self.key))
        return UserError(f"{text} ({hint})" if hint else text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key to another host."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _begin(answer: bytes) -> str:
    return " ".join(answer[:300].decode(errors="replace").split())


def _seconds(value: str | None) -> float | None:
    """A Retry-After header in seconds, an hour at most: a number, or a date."""
    if value is None:
        return None
    try:
        return min(max(0.0, float(value)), _HOUR)
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(0.0, seconds), _HOUR)

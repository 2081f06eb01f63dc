"""Chat completions of any OpenAI-compatible server (vLLM, SGLang, `transformers serve`), by the standard
library alone. Nothing here ever puts the key into a message."""

import base64
import email.message
import email.utils
import http.client
import io
import json
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Literal

from PIL import Image

from pixart_core.encoders.caption_rows import Description
from pixart_core.errors import PixartError, UserError

_BUSY = frozenset((408, 409, 425, 429, 502, 503, 504))  # nothing wrong with the request: ask again
_WRONG_SETUP = frozenset((401, 403, 404, 405, 407))  # wrong for every image alike
_LONGEST_PAUSE = 60.0  # seconds
_LONGEST_RETRY_AFTER = 600.0
_JPEG_QUALITY = 95


_Kind = Literal["unreachable", "busy", "broken"]


class RefusedError(PixartError):
    """The server takes no answer for this image from us, however often it is asked."""


class ServerGoneError(PixartError):
    """The server does not answer any more; what is done is kept."""


class _TransientError(Exception):
    """Ask again. When that is of no use, only `broken` may be one image's fault."""

    def __init__(self, reason: str, kind: _Kind, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.kind = kind
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # A redirect would carry the key to another host.
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class ChatServer:
    """One model of one server; safe to use from several threads."""

    def __init__(
        self,
        base: str,
        model: str,
        key: str | None,
        *,
        timeout: float = 300.0,
        retries: int = 10,
        backoff: float = 1.0,
    ) -> None:
        self.base, self.model = base.rstrip("/"), model
        self._key = key
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(
            _NoRedirects(), urllib.request.HTTPSHandler(context=ssl.create_default_context())
        )

    def stop(self) -> None:
        """Make threads that wait before another try give up."""
        self._stop.set()

    def check(self) -> None:
        """Ask once for the list of models, so that a wrong address or key shows before the work begins.

        Raises:
            UserError: nobody answers there, or the key is refused.
        """
        try:
            self._send(f"{self.base}/models", None, min(self._timeout, 30.0))
        except _TransientError as error:
            if error.kind == "unreachable" or "no answer" in str(error):
                raise UserError(f"api_base: {self.base} cannot be reached ({error})") from None
        except RefusedError:
            pass  # not every server has such a list
        except UserError as error:
            if "HTTP 404" not in str(error) and "HTTP 405" not in str(error):
                raise

    def describe(self, fields: Mapping[str, Any], spread: Callable[[], float] = random.random) -> Description:
        """The answer to one request.

        Args:
            fields: of the request, besides `model`.
            spread: draws from [0, 1): how pauses are spread, so that requests do not come back together.

        Raises:
            RefusedError: no answer for this image.
            UserError: no image will get one: a wrong key, model or address.
            ServerGoneError: after all tries.
        """
        body = json.dumps({"model": self.model} | dict(fields)).encode()
        for attempt in range(self._retries + 1):
            try:
                return _description(self._send(f"{self.base}/chat/completions", body, self._timeout))
            except _TransientError as error:
                tries = f"{error} after {attempt + 1} tries" if attempt else str(error)
                if attempt == self._retries or self._stop.is_set():
                    if error.kind != "broken":
                        raise ServerGoneError(f"{self.base}: {tries}") from None
                    raise RefusedError(tries) from None
                pause = min(self._backoff * 2**attempt, _LONGEST_PAUSE) * (0.5 + spread() / 2)
                self._stop.wait(max(pause, error.wait))
        raise AssertionError

    def _send(self, url: str, body: bytes | None, timeout: float) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pixart"}
        request = urllib.request.Request(url, body, headers)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from None
        except TimeoutError:
            raise _TransientError(f"no answer within {timeout:g} s", "broken") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _TransientError(f"no answer within {timeout:g} s", "broken") from None
            raise _TransientError(self._hidden(str(error.reason)), "unreachable") from None
        except (http.client.HTTPException, OSError) as error:  # the connection broke off
            reason = self._hidden(str(error)) or type(error).__name__
            raise _TransientError(reason, "unreachable") from None
        try:
            return json.loads(content)
        except ValueError:
            raise _TransientError("the answer is no JSON", "broken") from None

    def _of_status(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means for the image, or for all."""
        try:
            told = self._hidden(_message(error.read(100_000)))
        except (http.client.HTTPException, OSError):
            told = ""
        reason = f"HTTP {error.code}" + (f": {told}" if told else "")
        if error.code in _BUSY:
            return _TransientError(reason, "busy", _retry_after(error.headers))
        if error.code >= 500:  # may be this image's fault
            return _TransientError(reason, "broken", _retry_after(error.headers))
        if error.code in _WRONG_SETUP or error.code < 400:
            hint = " (api_key_env names the variable with the key)" if error.code in (401, 403) else ""
            return UserError(f"{self.base}, model {self.model}: {reason}{hint}")
        return RefusedError(reason)

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def request_fields(
    image: Image.Image, prompt: str, *, max_new_tokens: int, image_format: str = "jpeg"
) -> dict[str, Any]:
    """The fields of a request that asks `prompt` about `image`, answered with the likeliest words."""
    buffer = io.BytesIO()
    image.save(buffer, image_format.upper(), **({"quality": _JPEG_QUALITY} if image_format == "jpeg" else {}))
    url = f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_new_tokens,
        "temperature": 0.0,
    }


def _description(answer: Any) -> Description:
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        if isinstance(content, list):  # parts, as in a question
            content = "".join(part.get("text", "") for part in content)
        if not isinstance(content, str | None):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise _TransientError("the answer holds no choices[0].message.content", "broken") from None
    return Description((content or "").strip(), cut=choice.get("finish_reason") == "length")


def _message(content: bytes) -> str:
    """What a server says of an error, in a line."""
    text = content.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        inner = value.get("error", value)
        text = (
            str(inner.get("message") or inner.get("detail") or text)
            if isinstance(inner, dict)
            else str(inner)
        )
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]


def _retry_after(headers: email.message.Message) -> float:
    """Seconds that the server asks us to wait (a number, or a date), 0 if it does not."""
    value = headers.get("Retry-After", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER) if seconds == seconds else 0.0

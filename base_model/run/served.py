"""Method 3: the same prompt to a server that speaks OpenAI's protocol: vLLM on a cluster, TGI, `transformers serve`."""

import math
import time
from collections.abc import Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from base_model import MOST, ModelError, brief, visible, visible_text, warn
from base_model.hub.limits import OverLimitError, ask, file_of, require_wanted
from base_model.run.timing import Generation, Pass, decoding_speed, require_some, summary
from base_model.text.tame import require_text

TOKEN_BYTES = 10_000  # that one token may take of a stream: its text, and the JSON around it
PIECES = ("content", "reasoning_content", "reasoning", "tool_calls")  # where servers put the tokens that they make
OWN_TOKENS = 100_000  # that a server may put around a prompt: its template, its system prompt


def generate_served(
    base_url: str,
    name: str,
    prompt: str,
    max_new_tokens: int = 50,
    runs: int = 3,
    stream: bool = False,
    timeout: float = 60.0,
    token: str | None = None,
) -> Generation:
    """The answer of the model that a server calls `name`, timed at this end of the line, over the network and all.

    `base_url` is the server's, with or without `/v1` ("http://127.0.0.1:8000"). Greedy, and the prompt as one turn of a
    conversation, as in the other methods; token counts are the server's own (`usage`), dtype and token ids are unknown
    ("n/a", empty). `token` is the server's password, if it needs one; the Hub's is never sent. `timeout`: seconds that
    one answer may take, from the request to its end. Raises ModelError when the server is down or slower than that,
    does not know `name`, sends more than `max_new_tokens`, or reports impossible token counts. Warns where a count does
    not fit what came.
    """
    require_some(max_new_tokens, runs)
    require_text(prompt)
    url = _address(base_url)
    _require_terms(name, timeout, token)
    request = partial(_request, url, name, prompt, timeout=timeout, token=token)
    try:
        passes = [ask(partial(request, min(max_new_tokens, 2), show=False), timeout)]
        passes += [ask(partial(request, max_new_tokens, show=stream and not n), timeout) for n in range(runs)]
    except Exception as error:  # of httpx, huggingface_hub and json: told apart below
        raise _told(error, url, name, timeout) from error
    return summary(passes, method="served", device=visible(url.removesuffix("/v1")), dtype="n/a")


def _address(base_url: object) -> str:
    """The server's address with /v1. Raises ModelError for what is none, and for one with a password in it."""
    try:
        parts = urlsplit(base_url.strip()) if isinstance(base_url, str) else None
        is_one = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # brackets that do not close
        parts, is_one = None, False
    if parts is None or not is_one or parts.query or parts.fragment:
        shown = visible(repr(base_url))
        raise ModelError(f'base_url must be the address of a server, such as "http://127.0.0.1:8000", not {shown}.')
    if "@" in parts.netloc:  # it would be in every table and message
        raise ModelError("base_url holds a user name or a password. Give a password as `token` instead.")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1") + "/v1"


def _require_terms(name: Any, timeout: Any, token: Any) -> None:
    """Stop at what no request can say. The token itself is never shown. Raises ModelError."""
    if not isinstance(name, str) or not name.strip():
        raise ModelError(f"`name` is what the server calls its model, as text, not {name!r}.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ModelError(f"`timeout` is in seconds, more than 0, not {timeout!r}.")
    if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise ModelError("`token` must be one line of plain letters and signs, or None.")


def _request(url: str, name: str, prompt: str, limit: int, timeout: float, token: str | None, show: bool) -> Pass:
    """One streamed answer; the connection is closed whatever happens, at which a server stops its generation."""
    from huggingface_hub import InferenceClient

    most = (limit + 100) * TOKEN_BYTES
    # Without a token the client would send the user's Hub token to whatever server this is.
    with file_of(most), InferenceClient(base_url=url, timeout=timeout, token=token or "none") as client:
        start = time.perf_counter()
        chunks = client.chat_completion(
            [{"role": "user", "content": prompt}],
            model=name,
            max_tokens=limit,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        text, times, usage = _listen(chunks, limit, show)
        total_s = time.perf_counter() - start
    if usage is None and not times:
        raise ModelError(f"{url} answers, but not with a stream as OpenAI's protocol has it. Check the address.")
    prompt_tokens, new_tokens = _counts(usage, url, prompt, limit, len(times))
    if new_tokens and not text:
        warn(f"{url} sent no text in {new_tokens:,} tokens: it may have spent all on reasoning. Ask for more tokens.")
    first_token_s = times[0] - start if times else math.nan
    speed = decoding_speed(times, new_tokens) if new_tokens > 1 else math.nan
    return Pass(text, prompt_tokens, new_tokens, first_token_s, total_s, speed)


def _counts(usage: Any, url: str, prompt: str, limit: int, pieces: int) -> tuple[int, int]:
    """The tokens of the prompt and of the answer, as the server counts them. Raises ModelError for what cannot be."""
    if usage is None:
        raise ModelError(f"{url} ended its answer without `usage`, so its tokens cannot be counted. Update the server.")
    read: Any = getattr(usage, "prompt_tokens", None)
    made: Any = getattr(usage, "completion_tokens", None)
    most_read = min(len(prompt.encode("utf-8", "replace")) + OWN_TOKENS, MOST)
    for count, least, most, what in ((read, 1, most_read, "the prompt"), (made, int(pieces > 0), limit, "its answer")):
        if type(count) is not int or not least <= count <= most:
            shown = brief(Exception(repr(count)))
            raise ModelError(
                f"{url} reports {shown} tokens for {what}, where {least:,} to {most:,} are possible: its figures are "
                "useless. Update the server, or check that it respects `max_tokens`."
            )
    if made < pieces - 1:  # a last piece may be an end without a token
        words = f"{url} reports {made:,} tokens for an answer that came in {pieces:,} pieces: its speed may be wrong."
        warn(words)
    return read, made


def _listen(chunks: Iterable[Any], limit: int, show: bool) -> tuple[str, list[float], Any]:
    """The text, the moments at which pieces came (often one token each), of reasoning too, and the server's count."""
    pieces, times, usage = [], [], None
    for chunk in chunks:
        require_wanted()
        usage = chunk.usage or usage
        if any(getattr(choice.delta, kind, None) for choice in chunk.choices for kind in PIECES):
            times.append(time.perf_counter())
        piece = "".join(choice.delta.content or "" for choice in chunk.choices)
        if piece:
            pieces.append(piece)
            print(visible_text(piece) if show else "", end="", flush=show)
        if len(times) > 2 * limit + 8:  # a server may cut tokens; the exact count comes at the end
            raise OverLimitError(f"sent more than the {limit:,} tokens that it was asked for")
    if show:
        print()
    return "".join(pieces), times, usage


def _told(error: Exception, url: str, name: str, timeout: float) -> ModelError:
    """What went wrong between here and the server, and the next step."""
    from huggingface_hub import InferenceTimeoutError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    if isinstance(error, ModelError):
        return error
    if isinstance(error, OverLimitError):
        return ModelError(f"Gave up on {url}: it {error}. Try again with a larger `timeout`, or another server.")
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(f"{url} was not contacted: the Hub client is set to offline. Unset HF_HUB_OFFLINE.")
    if isinstance(error, InferenceTimeoutError | httpx.TimeoutException):
        return ModelError(
            f"{url} did not answer for {timeout:g} s. Try again with a larger `timeout`; it may be loading."
        )
    if isinstance(error, httpx.TransportError | httpx.InvalidURL):
        return ModelError(f"{url} cannot be reached: {brief(error)}. Is the server running, and is this its address?")
    if isinstance(error, HfHubHTTPError):
        status, words = error.response.status_code, brief(Exception(error.response.text or error))
        step = f"Ask it for its models' names: {url}/models."
        if status in (401, 403):
            step = "It needs its `token`."
        elif status == 429 or status >= 500:
            step = "It is busy or at fault: try again later."
        return ModelError(f"{url} refused {visible(name)!r} ({status}): {words} {step}")
    return ModelError(f"{url} does not answer as an OpenAI-compatible server: {brief(error)}. Check the address.")

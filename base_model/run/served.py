"""Method 3: the same prompt to a server that speaks OpenAI's protocol: vLLM on a cluster, TGI, `transformers serve`."""

import math
import time
from collections.abc import Iterable
from typing import Any

from base_model import ModelError, brief, visible
from base_model.run.timing import Generation, Pass, decoding_speed, require_some, summary


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
    conversation, as in the other methods; token counts are the server's own (`usage`), dtype and token ids are not told
    ("n/a", empty). `token` is the server's password, if it wants one; the Hub's is never sent. `timeout`: seconds
    without an answer. Raises ModelError when the server is down or silent, does not know `name`, or counts no tokens.
    """
    require_some(max_new_tokens, runs)
    url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
    try:
        passes = [_request(url, name, prompt, min(max_new_tokens, 2), timeout, token, show=False)]
        passes += [_request(url, name, prompt, max_new_tokens, timeout, token, stream and not n) for n in range(runs)]
    except Exception as error:  # of httpx, huggingface_hub and json: told apart below
        raise _told(error, url, name, timeout) from error
    return summary(passes, method="served", device=visible(url.removesuffix("/v1")), dtype="n/a")


def _request(url: str, name: str, prompt: str, limit: int, timeout: float, token: str | None, show: bool) -> Pass:
    """One streamed answer; the connection is closed whatever happens, at which a server stops its generation."""
    from huggingface_hub import InferenceClient

    # Without a token the client would send the user's Hub token to whatever server this is.
    with InferenceClient(base_url=url, timeout=timeout, token=token or "none") as client:
        start = time.perf_counter()
        chunks = client.chat_completion(
            [{"role": "user", "content": prompt}],
            model=name,
            max_tokens=limit,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        text, times, usage = _listen(chunks, show)
        total_s = time.perf_counter() - start
    if usage is None:
        raise ModelError(f"{url} ended its answer without `usage`, so its tokens cannot be counted. Update the server.")
    new_tokens, first_token_s = usage.completion_tokens, times[0] - start if times else math.nan
    return Pass(text, usage.prompt_tokens, new_tokens, first_token_s, total_s, decoding_speed(times, new_tokens))


def _listen(chunks: Iterable[Any], show: bool) -> tuple[str, list[float], Any]:
    """The text, the moments at which pieces of it came (often one token each), and the server's count."""
    pieces, times, usage = [], [], None
    for chunk in chunks:
        usage = chunk.usage or usage
        piece = "".join(choice.delta.content or "" for choice in chunk.choices)
        if piece:
            times.append(time.perf_counter())
            pieces.append(piece)
            print(piece if show else "", end="", flush=show)
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
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(f"{url} was not asked: the Hub's client is told to stay offline; unset HF_HUB_OFFLINE.")
    if isinstance(error, InferenceTimeoutError | httpx.TimeoutException):
        return ModelError(
            f"{url} gave no sign for {timeout:g} s. Try again with a larger `timeout`; it may be loading."
        )
    if isinstance(error, httpx.TransportError | httpx.InvalidURL):
        return ModelError(f"{url} cannot be reached: {brief(error)}. Is the server running, and is this its address?")
    if isinstance(error, HfHubHTTPError):
        status, words = error.response.status_code, brief(Exception(error.response.text or error))
        step = "It wants its `token`." if status in (401, 403) else f"Ask it for its models' names: {url}/models."
        return ModelError(f"{url} refused {visible(name)!r} ({status}): {words} {step}")
    return ModelError(f"{url} does not answer as an OpenAI-compatible server: {brief(error)}. Check the address.")

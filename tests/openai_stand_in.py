"""A stand-in for a server of OpenAI's protocol on loopback: one fixed answer, or one fault."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.hub_stand_in import start_answer

PIECES = ["Hello", " there", "."]


class OpenAIStandIn:
    """`with OpenAIStandIn("fault") as server:` serves at `server.url`; `server.requests` holds headers and bodies.

    Faults: "unknown" (404 in JSON), "locked" (401), "busy" (429), "down" (503), "silent" (no answer), "html", "uncounted" (no usage), "broken"
    (an error in the middle of the stream), "cut" (the line goes dead in the middle). `usage` and `pieces` replace the
    counts and the text; `hostile` answers in place of all that, with one of the functions below.
    """

    def __init__(self, fault="", usage=None, pieces=PIECES, hostile=None):
        self.fault, self.requests, self.over = fault, [], threading.Event()
        self.usage, self.pieces, self.hostile = usage or {}, pieces, hostile
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.requests.append((self.path, dict(self.headers), body))
                stand_in.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        if self.hostile:
            handler.server.over = self.over
            with suppress(ConnectionError):  # the client goes away, which is what is tested
                self.hostile(handler)
            return None
        if self.fault == "silent":
            self.over.wait(3)
            return None
        if status := {"unknown": 404, "locked": 401, "busy": 429, "down": 503}.get(self.fault):
            return self.send(handler, status, json.dumps({"error": f"The answer is {self.fault}"}))
        if self.fault == "html":
            return self.send(handler, 200, "data: <html>Welcome</html>\n\n")
        pieces = self.pieces[: self.requests[-1][2]["max_tokens"]]
        deltas = [piece if isinstance(piece, dict) else {"content": piece} for piece in pieces]
        lines = [chunk(choices=[{"index": 0, "delta": {"role": "assistant"} | delta}]) for delta in deltas]
        if self.fault == "broken":
            lines[1:] = ['data: {"error": "the GPU fell off"}\n\n']
        if self.fault != "uncounted":
            usage = {"prompt_tokens": 7, "completion_tokens": len(lines), "total_tokens": 10} | self.usage
            lines.append(chunk(choices=[], usage=usage))
        return self.send(handler, 200, "".join([*lines, "data: [DONE]\n\n"]), cut=self.fault == "cut")

    def send(self, handler, status, text, cut=False):
        handler.send_response(status)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text[: len(text) // 2 if cut else None].encode())


def chunk(**fields):
    """One line of the stream."""
    fixed = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "toy", "system_fingerprint": ""}
    return f"data: {json.dumps(fixed | fields)}\n\n"


def endless_stream(handler, pause=0.0):
    """Token after token, whatever was asked for."""
    start_answer(handler)
    while not handler.server.over.wait(pause):
        text = chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": "x"}}])
        handler.wfile.write(text.encode())


def slow_stream(handler):
    endless_stream(handler, 0.3)


def empty_stream(handler):
    """Lines that say nothing, for ever."""
    start_answer(handler)
    while not handler.server.over.is_set():
        handler.wfile.write(chunk(choices=[]).encode() * 1000)


def one_line(handler):
    """A line without an end."""
    start_answer(handler)
    handler.wfile.write(b"data: ")
    while not handler.server.over.is_set():
        handler.wfile.write(b"x" * (1 << 20))

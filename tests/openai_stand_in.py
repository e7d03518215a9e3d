"""A stand-in for a server of OpenAI's protocol on loopback: one fixed answer, or one fault."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECES = ["Hello", " there", "."]


class OpenAIStandIn:
    """`with OpenAIStandIn("fault") as server:` serves at `server.url`; `server.requests` holds headers and bodies.

    Faults: "unknown" (404 in JSON), "locked" (401), "silent" (no answer), "html", "uncounted" (no usage), "broken"
    (an error in the middle of the stream), "cut" (the line goes dead in the middle).
    """

    def __init__(self, fault=""):
        self.fault, self.requests = fault, []
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
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        if self.fault == "silent":
            time.sleep(3)
            return
        if status := {"unknown": 404, "locked": 401}.get(self.fault):
            return self.send(handler, status, json.dumps({"error": f"The answer is {self.fault}"}))
        if self.fault == "html":
            return self.send(handler, 200, "data: <html>Welcome</html>\n\n")
        lines = [chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": piece}}]) for piece in PIECES]
        if self.fault == "broken":
            lines[1] = 'data: {"error": "the GPU fell off"}\n\n'
        if self.fault != "uncounted":
            lines.append(chunk(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}))
        self.send(handler, 200, "".join([*lines, "data: [DONE]\n\n"]), cut=self.fault == "cut")

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

"""A stand-in for the Hugging Face Hub on loopback: one folder of files, served as whatever model is asked for.

`with HubStandIn(folder) as hub:` serves until the block ends; point the client's HF_ENDPOINT at `hub.url`.
`hub.requests` records every request as it arrives, so that tests can count requests and bytes.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 1 << 20  # files are streamed, so that sparse ones of many gigabytes can be served too
HASHED = 100 << 20  # a larger file's hash is made up from its name: reading gigabytes of holes takes a minute
ACCOUNT = "the-account"
LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf")

# What the Hub answers: status, headers, and which requests ("METHOD /path") the fault hits.
# For a gated model the listing works and files are refused; a bad token is refused even for public models.
EVERY, FILES, CONTENTS = r"", r"\w+ /.*(/resolve/|/auth-check)", r"GET /.*/resolve/"
FAULTS: dict[str | None, tuple[int, dict[str, str], str]] = {
    None: (0, {}, "never"),
    "gated-no-token": (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, FILES),
    "gated-not-granted": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}, FILES),
    "not-found": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, EVERY),
    # In just these words: the client takes any other 401 over https for a missing model.
    "bad-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, EVERY),
    "token-scope": (403, {"X-Error-Message": "Enable access to public gated repositories for your token"}, FILES),
    "busy": (429, {}, EVERY),
    "portal": (200, {}, EVERY),  # a hotel's login page, or a proxy's: an answer, but not the Hub's
    "down": (503, {}, EVERY),
    "down-midway": (503, {}, CONTENTS),  # the plan can still be made, then no file comes
}


@dataclass
class Request:
    """One request, and how many bytes of a file's content went back."""

    method: str
    path: str
    authorization: str | None
    sent: int = 0


class HubStandIn(ThreadingHTTPServer):
    def __init__(self, folder: Path, fault: str | None = None, pause: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.folder, self.fault, self.pause = folder, fault, pause  # pause: seconds before each chunk of a large file
        self.requests: list[Request] = []
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): _entry(folder, path) for path in paths}
        # From the content: the same files served again are the same commit, changed ones are another.
        self.commit = hashlib.sha1(json.dumps(self.files).encode()).hexdigest()

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    @property
    def sent(self) -> dict[str, int]:
        """The bytes of content that went out, by file."""
        total: Counter[str] = Counter()
        for request in self.requests:
            total[request.path.partition("/resolve/")[2].partition("/")[2]] += request.sent
        return dict(+total)  # without zeros


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer on a kept connection waits 40 ms
    server: HubStandIn

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.record = Request(self.command, path, self.headers.get("Authorization"))
        self.server.requests.append(self.record)
        try:
            self._answer(path)
        except ConnectionError:  # the client went away, which is its right
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, path: str) -> None:
        hub = self.server
        status, headers, hit = FAULTS[hub.fault]
        if re.match(hit, f"{self.command} {path}"):
            self._send_json(status, {"error": "as the test wished"}, headers)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            gated = "manual" if "gated" in str(hub.fault) else False
            siblings = list(hub.files.values())
            self._send_json(200, {"id": match[1], "sha": hub.commit, "gated": gated, "siblings": siblings}, {})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/[^/]+", path):
            self._send_json(200, list(hub.files.values()), {})
        elif path.endswith("/auth-check"):
            self._send_json(200, {}, {})
        elif path == "/api/whoami-v2":
            self._send_json(200, {"name": ACCOUNT}, {})
        elif (match := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path)) and match[1] in hub.files:
            self._send_file(hub.files[match[1]])
        else:
            self._send_json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})

    def _send_json(self, status: int, content: dict | list, headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self._send_head(status, {"Content-Type": "application/json", **headers}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, entry: dict) -> None:
        etag = f'"{entry["lfs"]["oid"] if entry["lfs"] else entry["oid"]}"'
        headers = {"X-Repo-Commit": self.server.commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry["size"])}
        wanted = _range(self.headers.get("Range"), entry["size"])
        status = 206 if "Range" in self.headers else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{entry['size']}"
        if status == 206 and not wanted:
            status, headers = 416, {"Content-Range": f"bytes */{entry['size']}"}
        self._send_head(status, headers, len(wanted))
        for chunk in _chunks(self.server.folder / entry["path"], wanted) if self.command == "GET" else ():
            time.sleep(self.server.pause if entry["lfs"] else 0)
            self.record.sent += len(chunk)  # before it leaves, or a quick test would count too few
            self.wfile.write(chunk)

    def _send_head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_) -> None:
        """Say nothing."""


def _range(header: str | None, size: int) -> range:
    """The bytes asked for: all of them, "a-b", "a-", or the last n for "-n"; empty when the file ends before."""
    if header is None:
        return range(size)
    first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", header).groups()
    if not first:
        return range(max(size - int(last), 0), size)
    return range(int(first), min(int(last) + 1, size) if last else size)


def _chunks(path: Path, wanted: range) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(wanted.start)
        for start in range(wanted.start, wanted.stop, CHUNK):
            yield file.read(min(CHUNK, wanted.stop - start))


def _entry(folder: Path, path: Path) -> dict:
    """One file as the Hub lists it; the model's page and its tree differ only in the names of the fields."""
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    blob_id = _digest("sha1", path, f"blob {size}\0".encode())
    entry = {"type": "file", "path": name, "rfilename": name, "size": size, "oid": blob_id, "blobId": blob_id}
    if not name.endswith(LFS_SUFFIXES) and size <= 10 << 20:
        return {**entry, "lfs": None}
    sha256 = _digest("sha256", path)
    return {**entry, "lfs": {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}}


def _digest(kind: str, path: Path, prefix: bytes = b"") -> str:
    digest, size = hashlib.new(kind, prefix), path.stat().st_size
    for part in [path.name.encode()] if size > HASHED else _chunks(path, range(size)):
        digest.update(part)
    return digest.hexdigest()

"""A stand-in for the Hugging Face Hub on loopback: one folder of files, served as whatever model is asked for.

`with HubStandIn(folder) as hub:` serves until the block ends; point the client's HF_ENDPOINT at `hub.url`.
`hub.requests` records every request as it arrives, so that tests can count requests and bytes.
"""

import gzip
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

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
    # What is private looks the same, so that nobody can find out what there is.
    "not-found": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, EVERY),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}, EVERY),
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


@dataclass(frozen=True)
class Snapshot:
    """What the model is at one commit."""

    folder: Path
    files: dict[str, dict]
    commit: str


class HubStandIn(ThreadingHTTPServer):
    def __init__(
        self,
        folder: Path,
        fault: str | None = None,
        pause: float = 0.0,  # seconds before each chunk of a large file
        *,
        revisions: dict[str, Path] | None = None,  # branches or tags beside `main`
        cut: dict[str, tuple[int, int]] | None = None,  # {file: (byte, times)}: where and how often its transfer ends
        corrupt: Container[str] = (),  # files whose last byte comes wrong
        listed: dict[str, int] | None = None,  # sizes that the list states, true or not, of any names
        about: dict | None = None,  # more of the model's page: `safetensors`, `cardData`
        ranges: bool = True,  # False: always the whole file
        cdn: bool = False,  # large files from another host, as the Hub has it
        hostile: tuple[str, Callable] | None = None,  # what answers the requests ("METHOD /path") that match, see below
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault, self.pause, self.cut, self.corrupt = fault, pause, dict(cut or {}), corrupt
        self.listed, self.about, self.ranges, self.cdn = listed or {}, about or {}, ranges, cdn
        self.hostile, self.over = hostile, threading.Event()
        self.requests: list[Request] = []
        self.snapshots = {name: _snapshot(place) for name, place in {"main": folder, **(revisions or {})}.items()}
        self.snapshots |= {snapshot.commit: snapshot for snapshot in self.snapshots.values()}
        self.commit = self.snapshots["main"].commit

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *where) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no fault of ours
            super().handle_error(*where)

    @property
    def sent(self) -> dict[str, int]:
        """The bytes of content that went out, by file."""
        total: Counter[str] = Counter()
        for request in self.requests:
            if file := re.fullmatch(_FILE, request.path):
                total[file["name"]] += request.sent
        return dict(+total)  # without zeros


_MODEL = r"/api/models/[^/]+/[^/]+"
_FILE = r"/[^/]+/[^/]+/(?P<kind>resolve|cdn)/(?P<revision>[^/]+)/(?P<name>.+)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each small answer on a kept connection waits 40 ms
    server: HubStandIn

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.record = Request(self.command, path, self.headers.get("Authorization"))
        if path != "/api/agent-harnesses":  # the client's own affair, once a day
            self.server.requests.append(self.record)
        try:
            self._answer(path)
        except ConnectionError:  # the client went away, which is its right
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self, path: str) -> None:
        if self.server.hostile and re.match(self.server.hostile[0], f"{self.command} {path}"):
            self.close_connection = True
            return self.server.hostile[1](self)
        status, headers, hit = FAULTS[self.server.fault]
        if re.match(hit, f"{self.command} {path}"):
            self._send_json(status, {"error": "as the test wished"}, headers)
        elif path.endswith("/auth-check"):
            self._send_json(200, {}, {})
        elif path == "/api/whoami-v2":
            self._send_json(200, {"name": ACCOUNT}, {})
        elif match := re.fullmatch(rf"{_MODEL}(/(?P<kind>revision|tree)/(?P<revision>[^/]+))?", path) or re.fullmatch(
            _FILE, path
        ):
            self._answer_at(self.server.snapshots.get(match["revision"] or "main"), match)
        else:
            self._send_json(404, {"error": "no such page"}, {})
        return None

    def _answer_at(self, snapshot: Snapshot | None, match: re.Match) -> None:
        hub, name = self.server, match.groupdict().get("name")
        if snapshot is None:
            self._send_json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        elif match["kind"] == "tree":
            self._send_json(200, list(snapshot.files.values()), {})
        elif name is None:
            gated = "manual" if "gated" in str(hub.fault) else False
            sizes = {file: entry["size"] for file, entry in snapshot.files.items()} | hub.listed
            siblings = [
                {**snapshot.files.get(file, {}), "rfilename": file, "size": size} for file, size in sizes.items()
            ]
            page = {"id": "org/name", "sha": snapshot.commit, "gated": gated, "siblings": siblings, **hub.about}
            self._send_json(200, page, {})
        elif name in snapshot.files:
            self._send_file(snapshot, snapshot.files[name], match["kind"])
        else:
            self._send_json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})

    def _send_json(self, status: int, content: dict | list, headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self._send_head(status, {"Content-Type": "application/json", **headers}, len(body))
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, snapshot: Snapshot, entry: dict, kind: str) -> None:
        hub, path, size = self.server, entry["path"], entry["size"]
        etag = f'"{entry["lfs"]["oid"] if entry["lfs"] else entry["oid"]}"'
        headers = {"X-Repo-Commit": snapshot.commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(size)}
        if entry["lfs"] and hub.cdn and kind == "resolve":
            place = f"http://localhost:{hub.server_port}/org/name/cdn/{snapshot.commit}/{quote(path)}"
            return self._send_head(302, {**headers, "Location": place}, 0)
        part = self.headers.get("Range") if hub.ranges else None
        wanted = _range(part, size)
        if part and not wanted:
            return self._send_head(416, {"Content-Range": f"bytes */{size}"}, 0)
        if part:
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
        self._send_head(206 if part else 200, headers, len(wanted))
        if self.command == "GET":
            self._send_content(snapshot.folder / path, entry, wanted)
        return None

    def _send_content(self, path: Path, entry: dict, wanted: range) -> None:
        hub, name = self.server, entry["path"]
        end, times = hub.cut.get(name, (wanted.stop, 0))
        if times and end < wanted.stop:
            hub.cut[name] = (end, times - 1)
            self.close_connection = True  # before all that was promised has come
            wanted = range(wanted.start, max(end, wanted.start))
        for chunk in _chunks(path, wanted):
            time.sleep(hub.pause if entry["lfs"] else 0)
            self.record.sent += len(chunk)  # before it leaves, or a quick test would count too few
            is_last = self.record.sent + wanted.start == entry["size"]
            self.wfile.write(chunk[:-1] + bytes([chunk[-1] ^ 1]) if is_last and name in hub.corrupt else chunk)

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


def _snapshot(folder: Path) -> Snapshot:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _entry(folder, path) for path in paths}
    # From the content: the same files served again are the same commit, changed ones are another.
    return Snapshot(folder, files, hashlib.sha1(json.dumps(files).encode()).hexdigest())


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


# --- Hostile answers, given as `hostile`: until the stand-in ends, or the client goes away

BOMB = gzip.compress(gzip.compress(b" " * (300 << 20), 1))  # some kilobytes that unpack to 300 MiB


def start_answer(handler: BaseHTTPRequestHandler, *headers: str, status: int = 200) -> None:
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Type: application/json", "Connection: close", *headers]
    handler.wfile.write("\r\n".join([*lines, "", ""]).encode())


def endless(handler, status: int = 200) -> None:
    """A body without an end, as fast as it goes."""
    start_answer(handler, status=status)
    while not handler.server.over.is_set():
        handler.wfile.write(b" " * CHUNK)


def endless_refusal(handler) -> None:
    endless(handler, 500)


def drip(handler) -> None:
    """A body of one byte every tenth of a second."""
    start_answer(handler, "Content-Length: 1000000")
    while not handler.server.over.wait(0.1):
        handler.wfile.write(b" ")


def drip_head(handler) -> None:
    """A head of the answer that comes byte by byte."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.server.over.wait(0.1):
        handler.wfile.write(b"x")


def hold(handler) -> None:
    """A body that stops before it is whole; the line stays open."""
    start_answer(handler, "Content-Length: 1000000", "X-Repo-Commit: " + "0" * 40, 'ETag: "x"')
    handler.wfile.write(b"{")
    handler.server.over.wait()


def silence(handler) -> None:
    handler.server.over.wait()


def bomb(handler) -> None:
    """A compressed body, though none was asked for."""
    start_answer(handler, "Content-Encoding: gzip, gzip", f"Content-Length: {len(BOMB)}")
    handler.wfile.write(BOMB)


def busy_for_ever(handler) -> None:
    start_answer(
        handler, "Retry-After: 1000000000", 'RateLimit: "api";r=0;t=1000000000', "Content-Length: 0", status=429
    )


def answer_with(text: str) -> Callable:
    """An answer of these words, whatever was asked."""

    def answer(handler) -> None:
        start_answer(handler, f"Content-Length: {len(text.encode())}")
        handler.wfile.write(text.encode())

    return answer

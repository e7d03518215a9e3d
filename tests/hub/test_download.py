"""Downloads that go wrong midway: cut, slow, stopped, killed, corrupted, onto a full disk; and what is seen of them.

The real client runs in a child process; files are sparse and of some MiB, since it writes them in pieces of 10 MiB.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import pytest

import model_tools as mt
from base_model import format_bytes
from base_model.hub.download import RECORDS
from tests.benchmark import write_set
from tests.child import MODEL, TOKEN, assert_refused, environment, fetch, fetch_command, files_in, look
from tests.conftest import ROOT
from tests.hub_stand_in import ACCOUNT, HubStandIn

MIB = 1 << 20
FIRST, SECOND, THIRD = (f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3))  # 1, 12 and 24 MiB
VERIFY = "options['verify'] = True"
BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "0"}


# A run that is stopped once a shard is finished; then the process lives on, as a notebook's does.
STOPPED = f"""
import signal, threading, time
from pathlib import Path
def ring():
    while not Path(sys.argv[2], {str(RECORDS)!r}, "{FIRST}.metadata").is_file():
        time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=ring).start()
try:
    mt.fetch_model(sys.argv[1], sys.argv[2])
except KeyboardInterrupt:
    deadline = time.monotonic() + 20
busy = lambda: sum("_work" in thread.name for thread in threading.enumerate())
while busy() and time.monotonic() < deadline:
    time.sleep(0.05)
print("busy:", busy(), "unfinished:", len(list(Path(sys.argv[2]).rglob("*.incomplete"))))
"""


@pytest.fixture(scope="module")
def published(toy, tmp_path_factory) -> Path:
    """Three sparse shards of growing size, and a small second copy that is left out."""
    folder = tmp_path_factory.mktemp("hub") / "published"
    tensors = {f"layers.{n}.weight": ("BF16", (rows, 1024)) for n, rows in enumerate((512, 6 * 1024, 12 * 1024))}
    write_set(folder, tensors, 3, {"model_type": "llama"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(toy / name, folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk" * 1024)
    return folder


@pytest.fixture(scope="module")
def sizes(published) -> dict[str, int]:
    """The files that come."""
    return {name: len(content) for name, content in files_in(published).items() if name != "pytorch_model.bin"}


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob("*.incomplete"))


def is_complete(folder: Path, published: Path) -> bool:
    return files_in(folder) == {name: c for name, c in files_in(published).items() if name != "pytorch_model.bin"}


@contextmanager
def running(hub: HubStandIn, folder: Path, finished: Iterable[str], coming: tuple[str, int]):
    """A download in a child process, as soon as some files are finished, and so many bytes of another were sent."""
    child = subprocess.Popen(
        fetch_command(folder), cwd=ROOT, env=environment(hub.url, f"{folder}-home", HF_TOKEN=TOKEN),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    records = [folder / RECORDS / f"{name}.metadata" for name in finished]
    deadline = time.monotonic() + 30
    try:
        while hub.sent.get(coming[0], 0) < coming[1] or not all(record.is_file() for record in records):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_transfer_cut_once_is_resumed(published, sizes, tmp_path):
    with HubStandIn(published, cut={THIRD: (10 * MIB, 1)}) as hub:
        done = fetch(hub.url, tmp_path / "toy")
    assert done.returncode == 0, done.stderr
    assert is_complete(tmp_path / "toy", published)
    assert hub.sent == sizes
    assert (
        len(
            [
                request
                for request in hub.requests
                if (request.method, request.sent > 0) == ("GET", True) and THIRD in request.path
            ]
        )
        == 2
    )


def test_a_piece_that_had_not_come_whole_comes_again(published, sizes, tmp_path):
    """The client writes 10 MiB at a time: what a cut leaves of a piece is lost, and no more than that."""
    with HubStandIn(published, cut={THIRD: (15 * MIB, 1)}) as hub:
        done = fetch(hub.url, tmp_path / "toy")
    assert done.returncode == 0, done.stderr
    assert is_complete(tmp_path / "toy", published)
    assert hub.sent == {**sizes, THIRD: sizes[THIRD] + 5 * MIB}


def test_a_transfer_cut_for_ever_is_told_and_the_next_run_completes(published, sizes, tmp_path):
    folder = tmp_path / "toy"
    with HubStandIn(published, cut={THIRD: (3 * MIB, 10**6)}) as hub:
        done = fetch(hub.url, folder)
    assert_refused(done, "could not be reached", "Check the network", "try again")
    kept = files_in(folder)
    assert kept.keys() == sizes.keys() - {THIRD} and unfinished(folder) == []
    with HubStandIn(published) as hub:
        done = fetch(hub.url, folder)
    assert done.returncode == 0, done.stderr
    assert f"Downloading 1 file, {format_bytes(sizes[THIRD])}" in done.stdout
    assert f"Already there: {len(kept)} files" in done.stdout
    assert hub.sent == {THIRD: sizes[THIRD]} and is_complete(folder, published)


def test_ctrl_c_answers_at_once_and_keeps_what_is_finished(published, sizes, tmp_path):
    folder, small = tmp_path / "toy", {name: size for name, size in sizes.items() if size < 2 * MIB}
    with HubStandIn(published, pause=0.2) as hub, running(hub, folder, small, (THIRD, MIB)) as child:
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        said, shown = child.communicate(timeout=20)
        seconds = time.monotonic() - start
    assert seconds < 2
    print(f"From Ctrl-C to the prompt: {seconds:.2f} s")
    left = format_bytes(sizes[SECOND] + sizes[THIRD])
    assert (
        f"Stopped. {len(small)} of {len(sizes)} files are finished and kept. The next run fetches 2 files, {left}."
        in said
    )
    assert shown.rstrip().endswith("KeyboardInterrupt") and TOKEN not in said + shown
    assert files_in(folder).keys() == small.keys() and unfinished(folder) == []
    with HubStandIn(published) as hub:
        assert fetch(hub.url, folder).returncode == 0
    assert hub.sent == {name: sizes[name] for name in (SECOND, THIRD)} and is_complete(folder, published)


def test_a_stopped_cell_leaves_no_transfer_behind(published, sizes, tmp_path):
    """In a notebook the process lives on: the threads end at their next piece, and the cell can be run again."""
    with HubStandIn(published, pause=0.1) as hub:
        done = fetch(hub.url, tmp_path / "toy", STOPPED)
    assert "Stopped." in done.stdout and "busy: 0 unfinished: 0\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    assert is_complete(tmp_path / "toy", published)
    assert hub.sent[FIRST] == sizes[FIRST]
    assert hub.sent[THIRD] < 2 * sizes[THIRD] - 5 * MIB  # the stopped transfer did not go on to its end


def test_leftovers_of_a_killed_download_are_named_and_removed(published, sizes, tmp_path):
    folder, small = tmp_path / "toy", {name: size for name, size in sizes.items() if size < 2 * MIB}
    with HubStandIn(published, pause=0.1) as hub, running(hub, folder, small, (THIRD, 12 * MIB)) as child:
        child.kill()
        child.wait(20)
    left = unfinished(folder)
    taken = sum(path.stat().st_size for path in left)
    assert left and taken >= 10 * MIB
    with HubStandIn(published) as hub:
        done = fetch(hub.url, folder)
    assert done.returncode == 0, done.stderr
    words = f"Unfinished files of a killed download take {format_bytes(taken)}: `remove_leftovers` frees them."
    assert words in done.stdout
    assert is_complete(folder, published) and not hub.sent.keys() & small.keys()
    assert unfinished(folder) == left
    assert (mt.remove_leftovers(folder), unfinished(folder)) == (taken, [])
    assert is_complete(folder, published)


def test_a_corrupted_file_of_the_right_size_is_found_by_verify_alone(published, sizes, tmp_path):
    folder = tmp_path / "toy"
    with HubStandIn(published, corrupt=[SECOND]) as hub:
        done = fetch(hub.url, folder)
        assert done.returncode == 0, done.stderr  # the length is right, and more is not looked at
        assert files_in(folder)[SECOND] != files_in(published)[SECOND]
        verified = fetch(hub.url, folder, VERIFY)
    assert_refused(verified, SECOND, "differ from the Hub's hashes", "Delete", "run this again")
    assert FIRST not in verified.stdout and THIRD not in verified.stdout.partition("ModelError: ")[2]
    (folder / SECOND).unlink()
    with HubStandIn(published) as hub:
        done = fetch(hub.url, folder, VERIFY)
    assert done.returncode == 0, done.stderr
    assert hub.sent == {SECOND: sizes[SECOND]} and is_complete(folder, published)


def test_verify_asks_for_the_commit_that_was_brought(published, tmp_path):
    newer = shutil.copytree(published, tmp_path / "newer")
    (newer / "config.json").write_text('{"model_type": "mistral"}')
    with HubStandIn(published) as hub:
        assert fetch(hub.url, tmp_path / "toy").returncode == 0
    with HubStandIn(newer, revisions={"before": published}) as hub:
        done = fetch(hub.url, tmp_path / "toy", VERIFY)
    assert (done.returncode, hub.sent) == (0, {}), done.stdout


def test_verify_without_a_hub_id_is_refused(toy):
    with pytest.raises(mt.ModelError, match=r"`verify` compares with the Hub.*fetch_model\(\"org/name\""):
        mt.fetch_model(toy, verify=True)


def test_a_copy_without_the_clients_notes_is_completed(published, sizes, tmp_path):
    """Files of another origin with the Hub's content: nothing to overwrite, nothing to fetch again."""
    folder = shutil.copytree(published, tmp_path / "toy")
    (folder / SECOND).unlink()
    with HubStandIn(published) as hub:
        done = fetch(hub.url, folder)
    assert done.returncode == 0, done.stdout
    assert hub.sent == {SECOND: sizes[SECOND]}


def test_a_disk_that_fills_up_is_told(published, sizes, tmp_path):
    """The free space is right before, and gone when the shards come: somebody else's file takes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        with HubStandIn(published) as hub:
            refused = fetch(hub.url, disk / "toy", HF_HOME=str(tmp_path / "home"))
            assert (hub.sent, (disk / "toy").exists()) == ({}, False)
            enough = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 10**12)"
            full = fetch(hub.url, disk / "toy", enough, HF_HOME=str(tmp_path / "home"))
        assert_refused(
            refused, f"The download needs {format_bytes(sum(sizes.values()))}; the disk of {disk}/toy has 20.00 MiB"
        )
        assert_refused(full, f"The disk filled up while {MODEL} was downloading. Free some space, then run this again.")
        assert THIRD not in files_in(disk / "toy") and unfinished(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_comes_is_said_before(published, sizes, tmp_path):
    (tmp_path / "toy").mkdir()
    free = "import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 0, 5 * 2**30)"
    with HubStandIn(published, "down-midway") as hub:
        said = fetch(hub.url, tmp_path / "toy", free).stdout.splitlines()
    total = format_bytes(sum(sizes.values()))
    assert said[:2] == [
        f"Downloading {len(sizes)} files, {total} of {MODEL} (commit {hub.commit[:8]}) into toy/; 5.00 GiB are free.",
        "Left out, since transformers does not read them (original/, other formats): 1 file, 4.00 KiB.",
    ]


def test_a_second_run_makes_no_request(published, sizes, tmp_path):
    with HubStandIn(published, cdn=True) as hub:
        first = fetch(hub.url, tmp_path / "toy", HF_TOKEN=TOKEN)
        asked = len(hub.requests)
        second = fetch(hub.url, tmp_path / "toy", HF_TOKEN=TOKEN)
    assert (first.returncode, second.returncode, len(hub.requests)) == (0, 0, asked), first.stderr + second.stderr
    assert hub.sent == sizes
    assert {request.authorization for request in hub.requests if "/cdn/" in request.path} == {None}


def test_the_account_without_access_is_named(published, tmp_path):
    with HubStandIn(published, "gated-not-granted") as hub:
        done = fetch(hub.url, tmp_path / "toy", HF_TOKEN=TOKEN)
    assert_refused(done, f"your account {ACCOUNT} has no access yet", f"https://huggingface.co/{MODEL}")


def test_the_nearest_name_on_disk_is_offered(published, tmp_path):
    shutil.copytree(published, tmp_path / "Tiny-Model")
    with HubStandIn(published, "not-found") as hub:
        answers = look(hub.url, tmp_path, 'fetch_model("Tiny-Modle")', 'fetch_model("org/Tiny-Modle")')
    assert [str(error).endswith("Did you mean Tiny-Model?") for error, _ in answers.values()] == [True, True], answers


def test_a_terminal_sees_a_bar_per_file_and_in_all(published, sizes, tmp_path):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")  # not on Windows
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with HubStandIn(published, pause=0.02) as hub:
        child = subprocess.Popen(
            fetch_command(tmp_path / "toy"), cwd=ROOT, env=environment(hub.url, tmp_path / "home", **BARS),
            stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        assert child.wait(30) == 0
    text = shown.decode()
    assert [name for name in sizes if f"\r{name}: 100%" not in text] == []
    assert re.search(r"all files: 100%\S* *\|?.*38\.\dM/38\.\dM", text), text[-2000:]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_a_pipe_sees_no_bar(published, tmp_path):
    with HubStandIn(published) as hub:
        done = fetch(hub.url, tmp_path / "toy", **BARS)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3

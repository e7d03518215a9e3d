"""`fetch_model` against a stand-in for the Hub: what comes, what does not, and every refusal in plain words.

The real client runs in a child process, since it reads its environment when it is imported.
"""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from base_model import format_bytes
from base_model.hub import access as hub
from tests.child import MODEL, TOKEN, UNPLUGGED, assert_refused, fetch, files_in
from tests.hub_stand_in import HubStandIn

SHARD = "model-00002-of-00003.safetensors"
JUNK = (
    "original/consolidated.00.pth",
    "original/params.json",
    "pytorch_model.bin",
    "model.gguf",
    "consolidated.safetensors",
)


@pytest.fixture(scope="module")
def published(toy, tmp_path_factory) -> Path:
    """The toy as a publisher would upload it: with copies that transformers does not read."""
    folder = shutil.copytree(toy, tmp_path_factory.mktemp("hub") / "published")
    for name in (*JUNK, ".gitattributes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"junk" * 1000)
    return folder


@pytest.fixture(scope="module")
def downloaded(published, tmp_path_factory):
    """One download: the folder, the stand-in that served it, and what the child said."""
    folder = tmp_path_factory.mktemp("downloads") / "toy"
    with HubStandIn(published) as stand_in:
        return folder, stand_in, fetch(stand_in.url, folder)


def test_a_download_is_complete_and_leaves_out_what_transformers_does_not_read(downloaded, toy):
    folder, stand_in, done = downloaded
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(folder)), done.stderr
    assert files_in(folder) == files_in(toy)
    assert stand_in.sent == {name: len(content) for name, content in files_in(toy).items()}


def test_files_and_size_are_said_before_they_come(published, toy, tmp_path):
    sizes = [len(content) for content in files_in(toy).values()]
    with HubStandIn(published, fault="down-midway") as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy")
    assert re.search(
        rf"Downloading {len(sizes)} files, {format_bytes(sum(sizes))} of {MODEL} \(commit \w{{8}}\) into toy/",
        done.stdout,
    )
    assert_refused(done, "could not be reached", "try again")
    assert stand_in.sent == {}


def test_a_complete_folder_makes_no_request(downloaded, published):
    with HubStandIn(published) as stand_in:
        done = fetch(stand_in.url, downloaded[0])
    assert (done.returncode, done.stdout.strip()) == (0, str(downloaded[0])), done.stderr
    assert stand_in.requests == []


def test_only_the_missing_shard_comes_again(downloaded, published, toy, tmp_path):
    folder = shutil.copytree(downloaded[0], tmp_path / "toy")
    (folder / SHARD).unlink()
    with HubStandIn(published) as stand_in:
        done = fetch(stand_in.url, folder)
    size = (toy / SHARD).stat().st_size
    assert done.returncode == 0, done.stderr
    assert f"Downloading 1 file, {format_bytes(size)} of {MODEL}" in done.stdout
    assert stand_in.sent == {SHARD: size}
    assert files_in(folder) == files_in(toy)


def test_a_file_from_the_hub_gives_way_to_its_newer_version(downloaded, published, tmp_path):
    folder, newer = shutil.copytree(downloaded[0], tmp_path / "toy"), shutil.copytree(published, tmp_path / "newer")
    (folder / SHARD).unlink()
    (newer / "generation_config.json").write_text("{}")
    with HubStandIn(newer) as stand_in:
        done = fetch(stand_in.url, folder)
    assert done.returncode == 0, done.stderr
    assert stand_in.sent.keys() == {SHARD, "generation_config.json"}
    assert (folder / "generation_config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("fault", "environment", "words"),
    [
        ("gated-no-token", {}, ["is gated", f"huggingface.co/{MODEL}", "settings/tokens", "`hf auth login`"]),
        ("gated-not-granted", {"HF_TOKEN": TOKEN}, ["no access yet", f"huggingface.co/{MODEL}", "wait for the email"]),
        ("not-found", {}, [f"has no model {MODEL}", "check the spelling", "`hf auth login`"]),
        ("disabled", {}, [f"disabled {MODEL}", f"huggingface.co/{MODEL}"]),
        ("bad-token", {"HF_TOKEN": TOKEN}, ["refused your token", "Run `hf auth login` again"]),
        ("token-scope", {"HF_TOKEN": TOKEN}, ["public gated repositories", "settings/tokens"]),
        ("busy", {}, ["too many requests", "wait"]),
        ("portal", {}, ["is not the Hub", "login page", f"open https://huggingface.co/{MODEL} in a browser"]),
        ("down", {}, ["could not be reached", "try again"]),
        (None, {"HF_ENDPOINT": UNPLUGGED}, ["could not be reached", "Check the network"]),
        (None, {"HF_HUB_OFFLINE": "1"}, ["is not on this disk", "HF_HUB_OFFLINE", "Unset it"]),
    ],
)
def test_each_fault_says_what_to_do(published, tmp_path, fault, environment, words):
    with HubStandIn(published, fault) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy", **{"HF_ENDPOINT": stand_in.url, **environment})
    if "gated" in str(fault):  # the Hub says so in advance, and the refusal comes before any promise
        assert "Downloading" not in done.stdout
    assert_refused(done, *words, "make demo")
    assert stand_in.sent == {}
    # The token, where there is one, was truly in play: `fetch` looks for it in all that was printed.
    assert (f"Bearer {TOKEN}" in {request.authorization for request in stand_in.requests}) == (
        "HF_TOKEN" in environment
    )


def test_a_full_disk_stops_before_the_first_byte(published, toy, tmp_path):
    size = sum(len(content) for content in files_in(toy).values())
    before = f"import shutil; shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, {size - 1})"
    with HubStandIn(published) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy", before)
    assert_refused(done, f"needs {format_bytes(size)}", "free", "Free some space", "folder=")
    assert stand_in.sent == {}
    assert not [request for request in stand_in.requests if request.method == "GET" and "/resolve/" in request.path]


def test_files_of_another_origin_are_not_overwritten(published, tmp_path):
    (tmp_path / "toy").mkdir()
    own = {"config.json": b'{"mine": true}', SHARD: b"my own weights"}
    for name, content in own.items():
        (tmp_path / "toy" / name).write_bytes(content)
    with HubStandIn(published) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy")
    assert_refused(done, *own, "replace", "Move them away", "folder=")
    assert files_in(tmp_path / "toy") == own
    assert stand_in.sent == {}


def test_a_file_changed_since_its_download_is_not_overwritten(downloaded, published, tmp_path):
    folder = shutil.copytree(downloaded[0], tmp_path / "toy")
    (folder / SHARD).unlink()
    (folder / "generation_config.json").write_text('{"mine": 1}')
    os.utime(folder / "generation_config.json", (time.time() + 60,) * 2)
    with HubStandIn(published) as stand_in:
        done = fetch(stand_in.url, folder)
    assert_refused(done, "generation_config.json", "changed since", "Move them away")
    assert (folder / "generation_config.json").read_text() == '{"mine": 1}'
    assert stand_in.sent == {}


def test_an_id_that_the_client_refuses_is_told(tmp_path):
    done = fetch(UNPLUGGED, tmp_path / "toy", "import sys; sys.argv[1] = 'org/a--b'\n")
    assert_refused(done, "org/a--b is not a Hub id", "make demo")


def test_a_model_without_safetensors_is_refused_before_downloading(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "published", ignore=shutil.ignore_patterns("model*"))
    with HubStandIn(folder) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy")
    assert_refused(done, MODEL, "no safetensors", "Pick another model")
    assert stand_in.sent == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", True),
        ("org/name_1.0", True),
        ("name", False),
        ("a/b/c", False),
        ("/folder/name", False),
        ("org/", False),
        ("./name", False),
        ("../name", False),
        ("org/na me", False),
    ],
)
def test_a_hub_id_is_org_slash_name(name, expected):
    assert (hub.parse_id(name) is not None) is expected

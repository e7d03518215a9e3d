"""A Hub id read without a download: the same tables as from the folder, few requests, no weights.

The real client runs in a child process, against a stand-in for the Hub whose branches are many models.
"""

import os
import re
import shutil
import struct
import warnings
from pathlib import Path

import pandas as pd
import pytest

import model_tools as mt
from tests.benchmark import llama_405b_like, write_set
from tests.child import MODEL, TOKEN, UNPLUGGED, look
from tests.folders import write_tensors
from tests.hub_stand_in import HubStandIn

INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00003.safetensors"
TENSORS = "read_tensors({})"
TABLES = [
    "list_files({})",
    TENSORS,
    *(f'group_parameters({TENSORS}, "{by}")' for by in ("file", "component", "layer", "dtype")),
    "check_model({})",
]
PLANS = ["plan_adapters({})", "plan_inference({}, [100])[['weights_bytes', 'kv_cache_bytes']]"]
CHARTS = [
    f'save_chart({plot}, HERE / "chart.png").read_bytes()'
    for plot in (
        "plot_storage(list_files({}))",
        *(f"plot_{what}({TENSORS})" for what in ("parameters", "components", "layers")),
    )
]
TOKENS = ["describe_tokenizer({})", 'show_tokens({}, "Grüße")']
TREE = "directory_tree({})"
ODD = [
    "layers.0.é" + "é" * 300,
    'a "quoted" \\ name',
    "日本.weight",
    "tab\there",
    "плюс" * 50,
]  # \u escapes: 6 bytes each


def write_odd(folder: Path) -> None:
    write_set(folder, dict.fromkeys(ODD, ("BF16", (4, 4))), 2, {"tie_word_embeddings": False})


def write_long(folder: Path) -> None:
    """One file whose header takes more than the first 100 kB, and one that is no part of the model but is listed."""
    folder.mkdir()
    write_tensors(folder / "model.safetensors", {f"layers.{n}.mlp.weight": ("BF16", (8, 8)) for n in range(2000)})
    write_tensors(folder / "adapter_model.safetensors", {"lora.weight": ("F32", (8, 8))})
    (folder / "config.json").write_text("{}")


def pad_header(path: Path) -> None:
    """Spaces behind the header's JSON, as some writers align: more of them than any guess allows."""
    content = path.read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    path.write_bytes(struct.pack("<Q", length + 4088) + content[8:length] + b" " * 4096 + content[length:])


DAMAGES = {  # branch: the damage, what is then read, and words of its ModelError
    "bad-index": (
        lambda folder: (folder / INDEX).write_text('{"weight_map"'),
        TENSORS,
        f"On the Hub, {INDEX} is not v",
    ),
    "bad-config": (lambda folder: (folder / "config.json").write_text("[]"), TENSORS, "On the Hub, config.json is not"),
    "page": (lambda folder: (folder / SHARD).write_text("<html>" * 99), TENSORS, f"{SHARD} is an HTML or XML page"),
    "empty": (lambda folder: (folder / SHARD).write_text(""), TENSORS, f"{SHARD} is empty"),
    "cut": (lambda folder: os.truncate(folder / SHARD, 300), TENSORS, f"{SHARD} ends within its header"),
    "short": (lambda folder: os.truncate(folder / SHARD, 40_000), TENSORS, f"{SHARD} is 208 B short"),
    "absent": (lambda folder: (folder / SHARD).unlink(), TENSORS, f"{INDEX} names {SHARD}, which is not on the Hub"),
    "no-index": (lambda folder: (folder / INDEX).unlink(), TENSORS, "neither model.safetensors nor"),
    "bad-tokens": (
        lambda folder: (folder / "tokenizer.json").write_text("no"),
        TOKENS[0],
        "tokenizer.json is not valid",
    ),
}


@pytest.fixture(scope="module")
def models(toy, base_toy, tmp_path_factory) -> dict[str, Path]:
    """The branches of the stand-in: five whole models, then the damaged ones."""
    home = tmp_path_factory.mktemp("branches")
    found = {"main": toy, "single": base_toy} | {name: home / name for name in ("odd", "long", "padded", *DAMAGES)}
    write_odd(found["odd"])
    write_long(found["long"])
    pad_header(shutil.copytree(toy, found["padded"]) / SHARD)
    for name, (damage, _, _) in DAMAGES.items():
        damage(shutil.copytree(toy, found[name]))
    return found


WHOLE = ["main", "single", "odd", "long", "padded"]


def calls(branch: str) -> list[str]:
    if branch in DAMAGES:
        return [*TABLES, DAMAGES[branch][1]]
    of_llama = [*TOKENS, *PLANS] if branch in ("main", "single") else []
    return [*TABLES, TREE, *(CHARTS if branch == "main" else ()), *of_llama]


def by_id(call: str, branch: str) -> str:
    return call.format(repr(f"{MODEL}@{branch}"))


@pytest.fixture(scope="module")
def seen(models, tmp_path_factory):
    """All branches, looked at by one child: the stand-in, the answers, and where the child's scratch folders were."""
    here, scratch = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("scratch")
    unsafe = {
        "../../stranger.json": 5,
        f"{scratch}/stranger.json": 5,
        "a/../../../stranger.json": 5,
        "..\\stranger.json": 5,
    }
    hidden = {".cache/huggingface/download/config.json.metadata": 10**12}  # not to be taken for our own note
    with HubStandIn(models["main"], revisions=models, listed=unsafe | hidden, cdn=True) as stand_in:
        asked = [by_id(call, branch) for branch in models for call in calls(branch)]
        answers = look(stand_in.url, here, *asked, TMPDIR=str(scratch), HF_TOKEN=TOKEN)
    return stand_in, answers, scratch


def requests_for(stand_in: HubStandIn, branch: str) -> list[str]:
    """The paths of all requests for a branch: it is asked for by name, its files by commit."""
    mark = rf"/revision/{branch}$|/{stand_in.snapshots[branch].commit}/"
    return [request.path for request in stand_in.requests if re.search(mark, request.path)]


@pytest.mark.parametrize(
    ("branch", "call"), [(branch, call) for branch in WHOLE for call in calls(branch) if call != TREE]
)
def test_a_hub_id_gives_the_tables_of_its_folder(seen, models, tmp_path, branch, call):
    found, warned = seen[1][by_id(call, branch)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mt.ModelWarning)
        expected = eval(call.format(repr(str(models[branch]))), {**vars(mt), "HERE": tmp_path})
    assert [text.replace(f"toy@{branch}", branch) for text in warned] == [
        str(one.message) for one in caught if one.category is mt.ModelWarning
    ]
    assert len(warned) == (branch in ("odd", "long") and call == "check_model({})")  # they are no architecture
    if isinstance(expected, bytes):
        assert found == expected
    else:
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("branch", WHOLE)
def test_the_tree_shows_the_commit_that_was_read(seen, models, branch):
    found, expected = seen[1][by_id(TREE, branch)][0].splitlines(), mt.directory_tree(models[branch]).splitlines()
    assert found[1:] == expected[1:]
    size = expected[0].partition("/")[2].strip()
    assert found[0] == f"toy@{branch}/  {size}  (commit {seen[0].snapshots[branch].commit[:8]})"


@pytest.mark.parametrize("branch", DAMAGES)
def test_a_malformed_model_on_the_hub_is_a_model_error(seen, branch):
    _, call, words = DAMAGES[branch]
    error = seen[1][by_id(call, branch)][0]
    assert isinstance(error, mt.ModelError) and words in str(error), error
    assert isinstance(seen[1][by_id("list_files({})", branch)][0], pd.DataFrame)


@pytest.mark.parametrize(
    ("branch", "settings", "tokenizer", "headers", "again"),
    [("main", 3, 3, 3, 0), ("single", 2, 2, 1, 0), ("odd", 2, 0, 2, 2), ("long", 1, 0, 2, 1), ("padded", 3, 0, 3, 1)],
)
def test_requests_are_few(seen, branch, settings, tokenizer, headers, again):
    """However many tables: one for the list, one for each settings file, one for each header, or two for a long one."""
    found = requests_for(seen[0], branch)
    on_hub, on_cdn = ([path for path in found if kind in path] for kind in ("/resolve/", "/cdn/"))
    assert len(found) - len(on_hub) - len(on_cdn) == 1
    assert (len(on_hub), len(on_cdn)) == (settings + tokenizer + headers + again, headers + again), found


def test_the_token_stays_with_the_hub(seen):
    """The Hub sends the client on to another host for large files."""
    sent = {("/cdn/" in request.path, request.authorization) for request in seen[0].requests}
    assert sent == {(False, f"Bearer {TOKEN}"), (True, None)}


def test_nothing_is_written_outside_and_nothing_stays(seen):
    assert list(seen[2].rglob("*")) == []
    assert not list(seen[2].parent.rglob("stranger*"))


def test_405b_takes_a_request_per_shard_and_no_weights(tmp_path):
    write_set(tmp_path / "big", llama_405b_like(), 191, {"tie_word_embeddings": False})
    asked = ['read_tensors("org/big")', 'list_files("org/big")', 'check_model("org/big")', 'directory_tree("org/big")']
    with HubStandIn(tmp_path / "big") as stand_in:
        answers = look(stand_in.url, tmp_path, *asked)
    tensors, files, checks, _ = (answers[call][0] for call in asked)
    assert (tensors["parameters"].sum(), len(files), checks["match"].all()) == (405_853_388_800, 193, True)
    assert files["size"].sum() > 811_000_000_000
    assert len(stand_in.requests) == 1 + 2 + 191
    assert sum(stand_in.sent.values()) < 2_000_000


def test_a_gated_model_without_access_still_shows_its_public_facts(toy, tmp_path):
    about = {"safetensors": {"parameters": {"F32": 27_000}, "total": 27_000}, "cardData": {"license": "llama3.2"}}
    asked = [
        f'{name}("{MODEL}")' for name in ("list_files", "hub_facts", "read_tensors", "check_model", "directory_tree")
    ]
    here = shutil.copytree(toy, tmp_path / "published")
    (here / "empty.txt").touch()
    with HubStandIn(here, "gated-not-granted", about=about) as stand_in:
        answers = look(stand_in.url, tmp_path, *asked, HF_TOKEN=TOKEN)
    (files, warned), (facts, _), *refused = (answers[call] for call in asked)
    pd.testing.assert_frame_equal(
        files[["file", "size", "description"]], mt.list_files(here)[["file", "size", "description"]]
    )
    assert files["parameters"].isna().all()
    assert len(warned) == 1 and warned[0].startswith("Files and sizes only.") and "is gated" in warned[0]
    facts = dict(facts.itertuples(index=False))
    assert (facts["licence"], facts["parameters"], facts["commit"]) == ("llama3.2", "27,000", stand_in.commit)
    assert facts["access"].startswith("gated") and facts["files"].startswith(f"{len(files)}, ")
    for error, _ in refused:
        assert isinstance(error, mt.ModelError)
        assert f"request it at https://huggingface.co/{MODEL}" in str(error) and "the-account" in str(error)


def test_a_complete_local_folder_wins_without_a_request(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    shutil.copytree(toy, tmp_path / "half")
    (tmp_path / "half" / SHARD).unlink()
    asked = [f'{name}("org/{folder}")' for folder in ("toy", "half") for name in ("list_files", "read_tensors")]
    with HubStandIn(toy) as stand_in:
        answers = look(stand_in.url, tmp_path, *asked)
    for call in asked:  # what is half there is read on the Hub, whole
        pd.testing.assert_frame_equal(answers[call][0], mt.list_files(toy) if "list" in call else mt.read_tensors(toy))
    assert {request.path for request in stand_in.requests if "half" not in request.path} == set()
    assert stand_in.requests


@pytest.mark.parametrize(
    ("fault", "model", "variables", "words"),
    [
        ("down", MODEL, {}, "The Hub could not be reached for org/toy (it answered 503)"),
        ("down-midway", MODEL, {}, "The Hub could not be reached for org/toy (it answered 503)"),
        (None, MODEL, {"HF_ENDPOINT": UNPLUGGED}, "The Hub could not be reached for org/toy (ConnectError)"),
        (
            None,
            MODEL,
            {"HF_HUB_OFFLINE": "1"},
            "org/toy is not on this disk (no complete folder toy/ was found), and HF_HUB_OFFLINE forbids",
        ),
        (None, f"{MODEL}@no-such", {}, "org/toy has no such revision"),
        ("disabled", MODEL, {}, "The Hub has disabled org/toy"),
        ("portal", MODEL, {}, "What answered for org/toy is not the Hub, or its answer is broken"),
    ],
)
def test_each_fault_is_a_model_error(toy, tmp_path, fault, model, variables, words):
    with HubStandIn(toy, fault) as stand_in:
        answers = look(stand_in.url, tmp_path, f'read_tensors("{model}")', **{"HF_ENDPOINT": stand_in.url, **variables})
    error = next(iter(answers.values()))[0]
    assert isinstance(error, mt.ModelError) and str(error).startswith(words), error


def test_sizes_that_the_hub_states_wrongly_are_noticed(base_toy, tmp_path):
    true = (base_toy / "model.safetensors").stat().st_size
    for number, (size, words) in enumerate(
        [
            (true + 8, "model.safetensors is too long"),
            (true - 8, "model.safetensors is 8 B short"),
            (10, "ends within its header"),
            (10**19, "10,000,000,000,000,000,000 bytes, cannot be created in"),
        ]
    ):
        with HubStandIn(base_toy, listed={"model.safetensors": size}) as stand_in:
            (tmp_path / str(number)).mkdir()
            error = look(stand_in.url, tmp_path / str(number), f'read_tensors("{MODEL}")').popitem()[1][0]
        assert isinstance(error, mt.ModelError) and words in str(error), error


def test_a_server_without_ranges_is_not_listened_to_for_gigabytes(tmp_path):
    """Its header is longer than the guess, so that the second part is not where the answer begins."""
    big = tmp_path / "big"
    big.mkdir()
    write_tensors(big / "model.safetensors", {f"layers.{n}.weight": ("BF16", (1024, 1024)) for n in range(1500)})
    (big / "config.json").write_text("{}")
    with HubStandIn(big, ranges=False) as stand_in:
        tensors = look(stand_in.url, tmp_path, 'read_tensors("org/huge")').popitem()[1][0]
    pd.testing.assert_frame_equal(tensors, mt.read_tensors(big))
    assert stand_in.sent["model.safetensors"] < 50 * 2**20  # of 3 GiB: what is in flight when the client hangs up

"""A Hub that never ends, drips, holds the line, sends bombs, or answers with other JSON: a sentence within seconds."""

import json
import shutil
import threading
import time

import pytest

import model_tools as mt
from base_model.hub import limits
from tests import hub_stand_in as hostile
from tests.child import MEMORY, MODEL, assert_refused, fetch, files_in, look
from tests.hub_stand_in import HubStandIn

IMPATIENT = 'vars(__import__("base_model.hub.limits", fromlist="x")).update(PATIENCE=1.5, ANSWER_SECONDS=6)'
LIST, CONFIG, HEADER, WHOAMI = r"GET /api/models/", r"GET .*/config.json", r"GET .*\.safetensors", r"GET .*whoami"
WORDS = {
    hostile.endless: "sent more than",
    hostile.drip: "sent less than 1.00 KiB per second",
    hostile.drip_head: "did not begin to answer",
    hostile.hold: "sent less than 1.00 KiB per second",
    hostile.silence: "did not begin to answer",
    hostile.bomb: "compressed answer",
    hostile.endless_refusal: "it answered 500",
    hostile.busy_for_ever: "too many requests",
}


def ask_hostile(folder, here, where, answer, *calls):
    """The answers of a child whose patience is short; it takes some seconds and some memory at most."""
    start = time.monotonic()
    with HubStandIn(folder, hostile=(where, answer)) as stand_in:
        answers = look(stand_in.url, here, IMPATIENT, *calls, MEMORY)
    assert answers[MEMORY][0] < 1_500_000, "kilobytes"
    assert time.monotonic() - start < 50
    return [answers[call][0] for call in calls]


@pytest.mark.parametrize("answer", WORDS)
def test_a_list_that_does_not_come_is_told(base_toy, tmp_path, answer):
    (error,) = ask_hostile(base_toy, tmp_path, LIST, answer, f'hub_facts("{MODEL}")')
    assert isinstance(error, mt.ModelError) and WORDS[answer] in str(error), error


@pytest.mark.parametrize("where", [CONFIG, HEADER])
@pytest.mark.parametrize("answer", [hostile.endless_refusal, hostile.drip, hostile.drip_head, hostile.bomb])
def test_a_file_that_does_not_come_is_told(base_toy, tmp_path, where, answer):
    (error,) = ask_hostile(base_toy, tmp_path, where, answer, f'read_tensors("{MODEL}")')
    assert isinstance(error, mt.ModelError) and WORDS[answer] in str(error), error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hostile.endless, "sent more than"),
        (hostile.drip, "sent less than"),
        (hostile.hold, "sent less than"),
        (hostile.bomb, "compressed answer"),
        (hostile.busy_for_ever, "too many requests"),
    ],
)
def test_a_download_that_does_not_come_is_told(toy, tmp_path, answer, words):
    start = time.monotonic()
    before = IMPATIENT.replace("PATIENCE=1.5", "PATIENCE=4")
    with HubStandIn(toy, hostile=(r"GET .*/resolve/.*/model-00002", answer)) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy", before)
    assert_refused(done, words, "make demo")
    assert time.monotonic() - start < 50
    assert not list((tmp_path / "toy").rglob("*.incomplete"))
    assert "model-00002-of-00003.safetensors" not in files_in(tmp_path / "toy")


def test_the_account_is_not_waited_for(toy, tmp_path):
    with HubStandIn(toy, "gated-not-granted", hostile=(WHOAMI, hostile.drip_head)) as stand_in:
        answers = look(stand_in.url, tmp_path, IMPATIENT, f'read_tensors("{MODEL}")')
    assert "`hf auth whoami` shows it" in str(answers[f'read_tensors("{MODEL}")'][0])


FILE = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
PAGE = {"id": MODEL, "sha": "0" * 40, "siblings": [FILE], "gated": False}
ODD = [
    [],
    None,
    "text",
    {},
    {"id": MODEL},
    {**PAGE, "sha": None},
    {**PAGE, "sha": "../../elsewhere"},
    {**PAGE, "sha": 7},
    {**PAGE, "siblings": None},
    {**PAGE, "siblings": 5},
    {**PAGE, "siblings": ["config.json"]},
    {**PAGE, "siblings": {"a": 1}},
    {**PAGE, "siblings": [{"size": 1}]},
    *({**PAGE, "siblings": [{**FILE, **odd}]} for odd in (
        {"rfilename": 7}, {"rfilename": None}, {"rfilename": ""}, {"size": "2"}, {"size": -1}, {"size": 2.5},
        {"size": True}, {"size": [1]}, {"blobId": 9}, {"lfs": 5}, {"lfs": {"size": "x", "sha256": 1}},
    )),
    {**PAGE, "siblings": [FILE] * 20_001},
    {**PAGE, "lastModified": "yesterday"},
]  # fmt: skip
FINE = [
    {**PAGE, "cardData": "text"},
    {**PAGE, "safetensors": {"parameters": "x", "total": "many"}},
    {**PAGE, "safetensors": {"parameters": {"\x1b[31mF32": 1}, "total": -5}},
    {**PAGE, "cardData": {"license": ["\x1b]0;title\x07", {}]}, "gated": "\x1b[2J"},
    {**PAGE, "siblings": [{**FILE, "size": None}]},
    {**PAGE, "siblings": [FILE] * 20_000},
]


def test_other_json_than_the_hubs_is_told(base_toy, tmp_path):
    """One child asks for many models; each is answered with something else."""
    texts = [*map(json.dumps, ODD), "[" * 100_000, '{"id": 1e999}', "\ud800".encode("utf-8", "replace").decode()]
    pages = dict(enumerate([*texts, *map(json.dumps, FINE)]))

    def answer(handler):
        number = int(handler.path.split("?")[0].rpartition("-")[2])
        hostile.answer_with(pages[number])(handler)

    calls = {number: f'hub_facts("org/odd-{number}")' for number in pages}
    with HubStandIn(base_toy, hostile=(r"GET /api/models/org/odd-", answer)) as stand_in:
        answers = look(stand_in.url, tmp_path, *calls.values())
    for number, call in calls.items():
        found = answers[call][0]
        if number < len(texts):
            assert isinstance(found, mt.ModelError) and f"org/odd-{number}" in str(found), (pages[number][:200], found)
        else:
            assert "\x1b" not in str(found) + repr(list(found["value"])) and len(found) == 7, pages[number]
            assert not [text for text in found["value"] if not text.isprintable()]


def test_a_listed_name_that_leads_elsewhere_stops_the_download(toy, tmp_path):
    with HubStandIn(toy, listed={"a/../../stranger.json": 5}) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy")
    assert_refused(done, "leads out of its folder", "nothing was downloaded")
    assert not (tmp_path / "toy").exists() and stand_in.sent == {}


def test_other_requests_of_the_users_own_are_left_alone(toy):
    with HubStandIn(toy) as stand_in:
        code = (
            '[hub_facts("org/toy"), __import__("huggingface_hub").utils.get_session()'
            f'.get("{stand_in.url}/api/whoami-v2").request.headers["Accept-Encoding"]][1]'
        )
        answer = look(stand_in.url, toy.parent, code)[code][0]
    assert "gzip" in answer


def test_a_file_of_the_model_may_be_longer_and_take_longer_than_other_answers(toy, tmp_path):
    before = 'vars(__import__("base_model.hub.limits", fromlist="x")).update(ANSWER_BYTES=20_000, ANSWER_SECONDS=1)'
    with HubStandIn(toy, pause=1.5) as stand_in:
        done = fetch(stand_in.url, tmp_path / "toy", before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_in(tmp_path / "toy") == files_in(toy)


def test_a_list_of_endless_pages_is_given_up(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "toy")
    before = 'vars(__import__("base_model.hub.limits", fromlist="x")).update(ANSWERS=30)\noptions["verify"] = True'

    def page(handler):
        url = f"{handler.server.url}{handler.path.partition('?')[0]}"
        hostile.start_answer(handler, f'Link: <{url}>; rel="next"', "Content-Length: 2")
        handler.wfile.write(b"[]")

    with HubStandIn(toy, hostile=(r"GET .*/tree/", page)) as stand_in:
        done = fetch(stand_in.url, folder, before)
    assert_refused(done, "sent more than 30 answers to one question")
    assert len(stand_in.requests) < 40


def test_nothing_is_asked_for_in_a_compressed_form(base_toy, tmp_path):
    asked = []

    def note(handler):
        asked.append(handler.headers["Accept-Encoding"])
        hostile.answer_with(json.dumps(PAGE))(handler)

    with HubStandIn(base_toy, hostile=(LIST, note)) as stand_in:
        look(stand_in.url, tmp_path, f'hub_facts("{MODEL}")')
    assert asked == ["identity"]


@pytest.mark.parametrize(
    ("seconds", "kept"), [("5", True), ("30", True), ("31", False), ("9" * 5000, False), ("²", False)]
)
def test_a_short_wait_is_kept_and_a_long_one_is_not(seconds, kept):
    headers = {"Retry-After": seconds, "RateLimit": f'"api";r=0;t={seconds}'}
    limits._shorten_wait(headers)
    assert bool(headers) == kept and len(headers) in (0, 2)


def test_a_server_that_is_slow_but_steady_is_waited_for(monkeypatch):
    """A second without a byte is paid for by the bytes of the next; half of what is needed is not enough."""
    clock = iter(range(1000))
    monkeypatch.setattr(limits.time, "monotonic", lambda: next(clock))
    steady, slow = limits.Watch(), limits.Watch()
    for watch in (steady, slow):
        watch.reading[0] = float("inf")
    for _ in range(200):
        steady.bytes += limits.SLOWEST
        steady.look()
    with pytest.raises(limits.OverLimitError, match="less than"):
        for second in range(200):
            assert second <= 2 * limits.PATIENCE + 2
            slow.bytes += limits.SLOWEST // 2
            slow.look()


def test_ctrl_c_and_a_fault_end_the_other_calls():
    ended = threading.Event()

    def wait():
        try:
            while True:
                limits.require_wanted()
                time.sleep(0.01)
        except limits.StoppedError:
            ended.set()

    def fail():
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        limits.side_by_side([wait, fail], 2)
    assert ended.wait(5)


@pytest.mark.parametrize(("connections", "calls", "most"), [(2, 6, 2), (8, 3, 3)])
def test_no_more_calls_at_once_than_connections(connections, calls, most, monkeypatch):
    started, real = [], threading.Thread
    monkeypatch.setattr(limits.threading, "Thread", lambda **it: started.append(it) or real(**it))
    assert limits.side_by_side([dict] * calls, connections) == [{}] * calls
    assert len(started) == most


def test_answers_come_in_the_order_of_their_calls():
    calls = [lambda n=n: time.sleep(0.05 * (4 - n)) or n for n in range(4)]
    assert limits.side_by_side(calls, 4) == limits.side_by_side(calls, 1) == [0, 1, 2, 3]
    assert limits.side_by_side([], 4) == []

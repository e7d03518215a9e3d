"""Method 3, against transformers' own server and against one that misbehaves."""

import math
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

import model_tools as mt
from base_model.hub import limits
from base_model.run import served as room
from base_model.run.tuned import answers
from tests import hub_stand_in, openai_stand_in
from tests.child import environment
from tests.openai_stand_in import OpenAIStandIn

PROMPT = "What is the capital of France?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The client refuses even loopback when it is told to stay offline, as it is in the other tests."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def served(demo, tmp_path_factory):
    """The URL of `transformers serve` with the demo model, up; it is ended with the tests of this file."""
    with serving(demo, tmp_path_factory.mktemp("serve")) as url:
        yield url


@contextmanager
def serving(folder, home):
    """The URL of `transformers serve` with a model, up, and gone afterwards."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (home / "log").open("w") as log:
        variables = environment("http://127.0.0.1:9", home, HF_HUB_OFFLINE="1")
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_up(process, f"{url}/health", home / "log")
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_up(process, url, log, seconds=180.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve is not up after {seconds} s: {log.read_text()}")


def test_transformers_serve_gives_the_manual_answer(served, demo, capsys):
    run = mt.generate_served(served, str(demo), PROMPT, 8, stream=True)
    manual = mt.generate_manually(*mt.load_model(demo), PROMPT, 8, runs=1)
    assert "Paris" in run.text
    assert capsys.readouterr().out.splitlines()[0] == run.text
    assert (run.prompt_tokens, run.new_tokens) == (manual.prompt_tokens, manual.new_tokens)
    assert (run.method, run.device, run.token_ids, run.runs) == ("served", served, (), 3)
    assert 0 < run.first_token_s < run.total_s
    assert run.tokens_per_s > 0
    checks = mt.check_runs([manual, run])
    assert list(checks["check"]) == [f"{served}: prompt tokens, as cpu"]
    assert checks["match"].all()


def test_a_merged_model_is_served(toy, tmp_path):
    """As docs/serving.md says, and as the script merges: its answer is that of the adapter over the base."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(5)  # with which it answers letters: a stream holds back bytes that end no character
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(toy), LoraConfig(target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(toy, dtype="auto")
    PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(toy).save_pretrained(tmp_path / "merged")
    (tmp_path / "home").mkdir()
    with serving(tmp_path / "merged", tmp_path / "home") as url:
        run = mt.generate_served(url, str(tmp_path / "merged"), PROMPT, 8, runs=1)
    table = answers(toy, tmp_path / "adapter", [PROMPT], 8)
    assert run.text == table["tuned"][0] != table["base"][0]


def test_transformers_serve_does_not_know_another_name(served):
    with pytest.raises(mt.ModelError, match=r"refused 'no/such-model' \(400\).*/v1/models"):
        mt.generate_served(f"{served}/v1/", "no/such-model", PROMPT, 4)


def test_the_tables_take_a_served_run():
    with OpenAIStandIn() as server:
        run = mt.generate_served(server.url, "toy", PROMPT, 3, runs=2)
    assert (run.text, run.prompt_tokens, run.new_tokens, run.runs) == ("Hello there.", 7, 3, 2)
    table = mt.compare_runs([run])
    assert mt.readable(table).loc[0, "same_tokens"] == "n/a"
    limits = mt.speed_limit([run])
    assert math.isnan(limits.loc[0, "share"])
    assert "limit not known" in [text.get_text() for text in mt.plot_limits(limits).texts]
    assert mt.limits_in_words(limits) == "No limit is known for these runs."
    assert mt.run_conditions([run]).empty


def test_what_is_sent_is_like_for_like_and_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with OpenAIStandIn() as server:
        mt.generate_served(server.url, "toy", PROMPT, 9, runs=1)
        mt.generate_served(server.url, "toy", PROMPT, 9, runs=1, token="for-the-server")
    path, _, body = server.requests[1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": PROMPT}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["stream"]) == ("toy", 9, 0.0, True)
    assert not any("hf_secret" in value for _, headers, _ in server.requests for value in headers.values())
    assert "Bearer for-the-server" in server.requests[3][1].values()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unknown", r"refused 'toy' \(404\): .*The answer is unknown.*/v1/models"),
        ("locked", r"refused 'toy' \(401\).*`token`"),
        ("busy", r"\(429\).*try again later"),
        ("down", r"\(503\).*try again later"),
        ("silent", r"(did not answer for|not sent a whole answer after) 0\.5 s.*timeout"),
        ("html", "not answer as an OpenAI-compatible server"),
        ("uncounted", "without `usage`"),
        ("broken", "the GPU fell off"),
        ("cut", "cannot be reached|not answer"),
    ],
)
def test_a_faulty_server_is_told_with_its_address(fault, words):
    with OpenAIStandIn(fault) as server, pytest.raises(mt.ModelError, match=words) as caught:
        mt.generate_served(server.url, "toy", PROMPT, 3, timeout=0.5)
    assert f"{server.url}/v1" in str(caught.value)


def test_no_server_at_all():
    with pytest.raises(mt.ModelError, match=r"cannot be reached"):
        mt.generate_served(f"http://127.0.0.1:{free_port()}", "toy", PROMPT, 3, timeout=2)


@pytest.mark.parametrize(
    "address",
    [None, 8000, "", "nonsense", "127.0.0.1:8000", "http://[", "ftp://x", "http://", "\x1b", "http://h/v1?x=1"],
)
def test_what_is_no_address_is_told_before_a_request(address):
    with pytest.raises(mt.ModelError, match="base_url must be the address of a server") as caught:
        mt.generate_served(address, "toy", PROMPT, 3, timeout=2)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (openai_stand_in.endless_stream, "more than the 2 tokens"),
        (openai_stand_in.slow_stream, "whole answer after 1 s"),
        (openai_stand_in.empty_stream, "sent more than|whole answer after 1 s"),
        (openai_stand_in.one_line, "sent more than"),
        (hub_stand_in.endless_refusal, "500"),
        (hub_stand_in.drip, "whole answer after 1 s"),
        (hub_stand_in.drip_head, "whole answer after 1 s"),
        (hub_stand_in.silence, "1 s"),
        (hub_stand_in.hold, "1 s"),
        (hub_stand_in.bomb, "compressed answer"),
    ],
)
def test_a_hostile_server_is_given_up_in_time(answer, words):
    start = time.monotonic()
    with OpenAIStandIn(hostile=answer) as server, pytest.raises(mt.ModelError, match=words) as caught:
        mt.generate_served(server.url, "toy", PROMPT, 50, timeout=1)
    assert server.url in str(caught.value) and time.monotonic() - start < 10


def test_a_slow_server_has_as_long_as_it_is_given(monkeypatch):
    """The limits on pace are the Hub's: tokens are few bytes, and the first may take minutes."""
    monkeypatch.setattr(limits, "PATIENCE", 0.2)

    def answer(handler):
        time.sleep(1)
        text = "".join(
            openai_stand_in.chunk(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7})
        )
        hub_stand_in.start_answer(handler, f"Content-Length: {len(text)}")
        time.sleep(1)
        handler.wfile.write(text.encode())

    with OpenAIStandIn(hostile=answer) as server:
        assert mt.generate_served(server.url, "toy", PROMPT, 2, runs=1, timeout=10).new_tokens == 0


@pytest.mark.parametrize(
    "usage",
    [
        *({"completion_tokens": odd} for odd in (0, -3, 10**12, "3", 2.5, None, True, [3], 4)),
        *({"prompt_tokens": odd} for odd in (0, -1, 10**8, "7", None, "\x1b[31m" * 1000)),
    ],
)
def test_counts_that_cannot_be_are_refused(usage):
    with OpenAIStandIn(usage=usage) as server, pytest.raises(mt.ModelError, match=r"reports .* tokens for") as caught:
        mt.generate_served(server.url, "toy", PROMPT, 3, runs=1)
    assert len(str(caught.value)) < 700 and "\x1b" not in str(caught.value)


def test_a_count_below_what_came_is_warned_of():
    with OpenAIStandIn(usage={"completion_tokens": 1}) as server, pytest.warns(mt.ModelWarning, match="in 3 pieces"):
        run = mt.generate_served(server.url, "toy", PROMPT, 3, runs=1)
    assert run.new_tokens == 1 and math.isnan(run.tokens_per_s)


def test_reasoning_takes_time_and_is_no_text(monkeypatch):
    """As vLLM sends it with a parser for reasoning: its tokens are counted, so they must be timed, too."""
    clock = iter(range(100))
    monkeypatch.setattr(room.time, "perf_counter", lambda: next(clock))
    pieces = [{"reasoning_content": "hm"}] * 3 + ["Hi"] * 2
    with OpenAIStandIn(pieces=pieces) as server:
        run = mt.generate_served(server.url, "toy", PROMPT, 5, runs=1)
    assert (run.text, run.new_tokens, run.tokens_per_s) == ("HiHi", 5, 1.0)
    with OpenAIStandIn(pieces=pieces[:3]) as server, pytest.warns(mt.ModelWarning, match="spent all on reasoning"):
        assert mt.generate_served(server.url, "toy", PROMPT, 3, runs=1).text == ""


def test_an_address_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(mt.ModelError, match="as `token` instead") as caught:
        mt.generate_served("http://bob:secret@127.0.0.1:9", "toy", PROMPT, 3)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"timeout": 0}, "more than 0"), ({"timeout": math.nan}, "more than 0"), ({"timeout": None}, "more than 0"),
        ({"timeout": math.inf}, "more than 0"), ({"name": 5}, "what the server calls"), ({"prompt": None}, "must be a str"),
        ({"prompt": "\ud800"}, "no character"), ({"token": "s3\ncret"}, "one line of plain letters"),
    ],
)  # fmt: skip
def test_what_no_request_can_say_is_told_before_one(terms, words):
    with pytest.raises(mt.ModelError, match=words) as caught:
        mt.generate_served(**{"base_url": "http://127.0.0.1:9", "name": "toy", "prompt": PROMPT} | terms)
    assert "cret" not in str(caught.value)


def test_what_a_server_says_cannot_steer_the_terminal(capsys):
    with OpenAIStandIn(pieces=["\x1b[31mred", "\x07\n", "\tend\u202e"]) as server:
        run = mt.generate_served(server.url, "toy", PROMPT, 3, runs=1, stream=True)
    assert capsys.readouterr().out == "\\x1b[31mred\\x07\n\tend\\u202e\n"
    assert run.text == "\x1b[31mred\x07\n\tend\u202e"  # the text itself is as it came


def test_offline_is_told(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(mt.ModelError, match="Unset HF_HUB_OFFLINE"):
        mt.generate_served("http://127.0.0.1:9", "toy", PROMPT, 3)


def test_nothing_to_generate_is_refused():
    with pytest.raises(mt.ModelError, match="at least 1"):
        mt.generate_served("http://127.0.0.1:9", "toy", PROMPT, 0)

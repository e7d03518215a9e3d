"""The command: answers on standard output, everything else on standard error, faults as one sentence."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from typer.testing import CliRunner

import model_tools as mt
from base_model import commands
from base_model.train import recommend
from tests.child import environment
from tests.conftest import ROOT
from tests.folders import write_toy

NO_HUB = "http://127.0.0.1:9"


def run(*words, cwd=ROOT, seconds=120, **more):
    command = [sys.executable, str(ROOT / "model_tools.py"), *map(str, words)]
    variables = environment(NO_HUB, "/nonexistent", HF_HUB_OFFLINE="1", COLUMNS="100", **more)
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=seconds)


def test_without_arguments_the_help_is_shown():
    done = run()
    assert "Usage:" in done.stdout + done.stderr and "Traceback" not in done.stderr
    for verb in ("get", "demo", "files", "check", "plan", "script", "train", "report", "notebook", "page", "lab"):
        assert f"\n  {verb} " in done.stdout + done.stderr


@pytest.mark.parametrize(
    "verb", ["get", "files", "check", "plan", "script", "train", "report", "notebook", "page", "lab"]
)
def test_each_verb_explains_itself(verb):
    done = run(verb, "--help")
    assert done.returncode == 0 and "MODEL" in done.stdout and "A folder, or a Hub id" in done.stdout


def test_get_prints_where_the_model_is(toy):
    done = run("get", toy)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{toy}\n", "")


def test_files_as_words_and_as_json(toy):
    assert "Model weight shard" in run("files", toy).stdout
    rows = json.loads(run("files", toy, "--json").stdout)
    table = mt.list_files(toy)
    assert [(row["file"], row["size"]) for row in rows] == list(zip(table["file"], table["size"], strict=True))


def test_check_tells_by_its_exit_code(toy, tmp_path):
    done = run("check", toy, "--json")
    assert done.returncode == 0 and all(row["match"] for row in json.loads(done.stdout))
    odd = write_toy(tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    assert run("check", odd).returncode == 1


def test_plan_for_a_card_is_the_answer(toy, monkeypatch):
    monkeypatch.setattr(recommend, "METHODS", recommend.METHODS[:2])
    words = ["plan", str(toy), "--memory", "1GiB", "--tokens", "32"]
    rows = json.loads(CliRunner().invoke(commands.app, [*words, "--json"]).stdout)
    assert rows[0]["verdict"] == "fits" and rows[0]["batch"] >= 1
    told = CliRunner().invoke(commands.app, words).stdout
    assert "Of the methods that fit, those within" in told.replace("\n", " ")
    first = rows[0]
    row = f"{toy} --method '{first['method']}' --batch {first['batch']} --tokens 32"
    row += " --checkpointing" * first["checkpointing"]
    assert f" script {row}\n" in told and told.rstrip().endswith(f" train {row}")
    refused = run("plan", toy, "--gpu", "RTX 4091")
    assert refused.returncode == 1 and "4090" in refused.stderr and "Traceback" not in refused.stderr


def test_plan_needs_settings_alone(toy, tmp_path):
    (tmp_path / "config.json").write_bytes((toy / "config.json").read_bytes())
    tables = json.loads(run("plan", tmp_path, "--tokens", "64", "--json").stdout)
    assert tables.keys() == {"machine", "inference", "adapters", "training"}
    assert {row["tokens"] for row in tables["training"]} == {64}


def test_on_several_cards_the_answer_is_a_script_for_them(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(recommend, "METHODS", recommend.METHODS[2:3])
    words = ["plan", str(toy), "--memory", "1GiB", "--tokens", "32", "--devices", "2"]
    told = CliRunner().invoke(commands.app, words).stdout
    assert " train " not in told.split("To write its script:")[1]
    line = shlex.split(told.rstrip().rpartition("\n")[2])
    assert line[line.index("script") + 1 :][-2:] == ["--devices", "2"]
    done = run(*line[line.index("script") :], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / toy.name / "train-1"
    assert Path(done.stdout.strip()) == folder.relative_to(tmp_path) / "train.py" and (folder / "fsdp.yaml").is_file()


def test_a_script_needs_no_weights_and_runs_nothing(toy, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((toy / name).read_bytes())
    done = run("script", model, "--method", "IA-3", "--folder", tmp_path / "there", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'there' / 'train.py'}\n"), done.stderr
    assert "has no weights yet" in done.stderr and "IA3Config" in (tmp_path / "there" / "train.py").read_text()
    again = run("script", model, "--folder", tmp_path / "there", cwd=tmp_path)
    assert again.returncode == 1 and again.stderr.count("\n") == 2  # the warning, and that nothing is overwritten


def test_train_writes_a_script_runs_it_and_shows_what_came_of_it(toy, tmp_path):
    folder = tmp_path / "runs" / toy.name
    (folder / "train-1").mkdir(parents=True)
    done = run("train", toy, "--steps", "3", "--batch", "2", "--tokens", "128", cwd=tmp_path, seconds=500)
    assert done.returncode == 0, done.stderr
    assert f"runs/{toy.name}/train-2/train.py" in done.stderr and not list((folder / "train-1").iterdir())
    assert (folder / "train-2" / "adapter" / "adapter_model.safetensors").is_file()
    for word in ("peak of 2 x ", "MiB", "seconds per step", "loss on held-out texts", "base: ", "tuned: "):
        assert word in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:4].strip().isdigit()] == ["0", "3"]


def test_train_refuses_before_it_writes(toy, tmp_path):
    done = run("train", toy, "--steps", "1", cwd=tmp_path)
    assert (done.returncode, "steps must be a whole number from 3" in done.stderr) == (1, True)
    typo = run("train", "org/SmolLM2-135M-Instuct", cwd=tmp_path)
    assert typo.returncode == 1 and "`python model_tools.py get org/SmolLM2-135M-Instuct` downloads it" in typo.stderr
    assert typo.stderr.rstrip().endswith("Did you mean SmolLM2-135M-Instruct?") and typo.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_report_says_where_it_is(toy, tmp_path):
    done = run("report", toy, "--folder", tmp_path / "found")
    assert done.stdout == f"{tmp_path / 'found' / 'report.md'}\n"
    assert (tmp_path / "found" / "report.json").is_file()


def test_a_fault_is_one_sentence_and_exit_code_1(tmp_path):
    done = run("files", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"There is no folder {tmp_path / 'nothing'}.") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["notebook", "page"])
def test_a_model_may_come_from_the_environment(verb, tmp_path):
    done = run(verb, MODEL="-rf x", cwd=tmp_path)
    assert done.returncode == 1 and "-rf x" in done.stderr and done.stderr.count("\n") == 1
    assert run(verb, MODEL="").stderr.startswith("No model was given.")


@pytest.mark.parametrize("there", [True, False])
def test_lab_opens_a_copy_on_the_model_that_is_meant(monkeypatch, tmp_path, there):
    started = []
    monkeypatch.setattr(os, "execve", lambda *words: started.append(words))
    monkeypatch.setattr(commands, "working_copy", lambda: tmp_path / "copy.ipynb")
    monkeypatch.setattr(commands, "is_complete", lambda folder: there)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").touch()
    monkeypatch.setenv("DATA", "my.jsonl")
    monkeypatch.delenv("MODEL", raising=False)
    commands.lab()
    monkeypatch.setenv("MODEL", "")
    commands.lab()
    commands.lab("org/name")
    usual = commands.DEMO if there else commands.DEFAULT
    assert [environment["MODEL"] for *_, environment in started] == [usual, "", "org/name"]
    program, words, environment = started[0]
    assert (
        program == sys.executable and words[1:3] == ["-m", "jupyterlab"] and words[-1] == str(tmp_path / "copy.ipynb")
    )
    assert (environment["DATA"], environment["PYTHONPATH"]) == (str(tmp_path / "my.jsonl"), str(ROOT))
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        commands.lab("org/name")
        assert ("--allow-root" in started[-1][1]) == (user == 0)


def test_wrong_usage_is_exit_code_2(toy):
    assert run("plan", toy, "--tokens", "many").returncode == 2
    assert run("fetch", toy).returncode == 2


def test_a_warning_is_a_line_on_standard_error(toy, tmp_path):
    folder = write_toy(tmp_path / "model")
    (folder / "model-stray.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    done = run("files", folder)
    assert done.returncode == 0 and "stray" not in done.stderr.splitlines()[0][:8]
    assert done.stderr.startswith("Warning: No parameters are counted in one file.")


def test_names_cannot_steer_the_terminal(toy, tmp_path):
    odd = "a\x1b[31m\x9b2J\u202e.json"
    folder = shutil.copytree(toy, tmp_path / "model")
    (folder / odd).write_text("{}")
    (folder / f"model-{odd}.safetensors").write_text("{}")
    for words in (["files", folder], ["files", folder, "--json"], ["files", tmp_path / odd]):
        done = run(*words)
        assert not [char for char in done.stdout + done.stderr if not char.isprintable() and char != "\n"], words
    assert odd in {row["file"] for row in json.loads(run("files", folder, "--json").stdout)}


def test_a_script_that_is_only_written_is_the_one_that_is_tried():
    usual = [
        {name: one.default for name, one in signature(verb).parameters.items()}
        for verb in (commands.write, commands.train)
    ]
    shared = {"method": "LoRA r16, all linear", "batch": 4, "tokens": 256, "checkpointing": False, "data": None}
    assert all(shared.items() <= defaults.items() for defaults in usual)

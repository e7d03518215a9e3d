"""The real Hub client in a child process: it reads its environment when it is imported, and it may be killed."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

MODEL = "org/toy"
TOKEN = "hf_SecretSecretSecretSecretSecret"
UNPLUGGED = "http://127.0.0.1:9"  # nobody listens there
# The most that a child itself held, in kilobytes: what getrusage says on Linux begins with its parent's.
PEAK = 'int(__import__("re").search("VmHWM: *(.*) kB", open("/proc/self/status").read())[1])'
RUSAGE = '__import__("resource").getrusage(__import__("resource").RUSAGE_SELF).ru_maxrss'
MEMORY = PEAK if sys.platform == "linux" else RUSAGE

# The whole traceback goes out, as a notebook would show it; another exception than ModelError ends with 1.
FETCH = """
import sys, traceback
import model_tools as mt
options = {}
{before}
try:
    print(mt.fetch_model(sys.argv[1], sys.argv[2], **options))
except mt.ModelError as error:
    traceback.print_exc()
    print("ModelError:", error)
    sys.exit(3)
"""

# Calls of model_tools, each with its answer, or its ModelError, and its warnings.
LOOK = """
import pickle, sys, warnings
from pathlib import Path
import model_tools as mt
from base_model.hub import locate
locate.HERE, answers = Path(sys.argv[1]), {}
for call in sys.argv[3:]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mt.ModelWarning)
        try:
            answer = eval(call, vars(mt) | {"HERE": locate.HERE})
        except mt.ModelError as error:
            answer = error
    answers[call] = answer, [str(warning.message) for warning in caught if warning.category is mt.ModelWarning]
Path(sys.argv[2]).write_bytes(pickle.dumps(answers))
"""


def environment(endpoint: str, home: Path | str, **more: str) -> dict[str, str]:
    """This process's, with nothing of the user: no token, setting or proxy may reach the child."""
    of_user = re.compile("HF_|HUGGING|.*_PROXY$", re.IGNORECASE)
    clean = {name: value for name, value in os.environ.items() if not of_user.match(name)}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return clean | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more


def fetch_command(folder: Path, before: str = "") -> list[str]:
    """`fetch_model(MODEL, folder, **options)`, after the statements in `before`."""
    return [sys.executable, "-c", FETCH.replace("{before}", before), MODEL, str(folder)]


def fetch(endpoint: str, folder: Path, before: str = "", **more: str) -> subprocess.CompletedProcess:
    """Run that command to its end; `more` are environment variables."""
    return _run(fetch_command(folder, before), environment(endpoint, f"{folder}-home", **more))


def look(endpoint: str, here: Path, *calls: str, **more: str) -> dict[str, tuple]:
    """`{call: (answer, warnings)}` of expressions such as `list_files("org/name")`; models may lie in `here`."""
    answers = here / "answers.pickle"
    done = _run(
        [sys.executable, "-c", LOOK, str(here), str(answers), *calls], environment(endpoint, here / "home", **more)
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN.encode() not in answers.read_bytes()
    return pickle.loads(answers.read_bytes())


def _run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240)
    assert TOKEN not in done.stdout + done.stderr
    return done


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 3, done.stderr
    message = done.stdout.partition("ModelError: ")[2]
    assert [word for word in words if word not in message] == [], message


def files_in(folder: Path) -> dict[str, bytes]:
    """The visible files: the client keeps its records under .cache/."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {name.as_posix(): (folder / name).read_bytes() for name in names if name.parts[0] != ".cache"}

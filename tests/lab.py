"""JupyterLab in a real browser: a server on loopback, a page that is driven as a person would."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

SETTINGS = {  # every cell is in the page, seen or not, and nothing is asked on the way
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def browser_path() -> str:
    """Chromium or Chrome, as it is installed; without one the test is skipped, but not on CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not found and not os.environ.get("CI"):
        pytest.skip("no chromium or google-chrome is installed")
    assert found, "CI needs chromium: apt-get install chromium"
    return found


@contextmanager
def browser_page(**options) -> Iterator:
    """A page of a headless browser; `options` are those of a context: viewport, color_scheme, offline."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield browser.new_context(**options).new_page()
        browser.close()


@contextmanager
def jupyter_lab(folder: Path, environment: dict[str, str], theme: str = "JupyterLab Light") -> Iterator[str]:
    """A server for `folder`, with settings of its own; gives the address of a file in it, to be formatted."""
    port, token, home = _free_port(), secrets.token_hex(16), folder / ".jupyter"
    _write_settings(home / "settings", SETTINGS | {"apputils-extension/themes": {"theme": theme}})
    places = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "work",
        "JUPYTER_CONFIG_DIR": "config",
    }
    variables = os.environ | {name: str(home / place) for name, place in places.items()} | environment
    variables |= {"PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token}
    variables.pop("MPLBACKEND", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", f"--ServerApp.root_dir={folder}"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=variables, cwd=folder, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={token}", server)
            yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
        finally:
            server.terminate()  # which ends its kernels too
            server.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _write_settings(folder: Path, settings: dict[str, dict]) -> None:
    for name, values in settings.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


def _wait_for(url: str, server: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("JupyterLab did not start")


def run_all(page, url: str, seconds: float = 600) -> None:
    """Open a notebook, choose Run > Restart Kernel and Run All Cells, and wait until no cell is waiting or running."""
    page.goto(url)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells").click()
    page.get_by_role("button", name="Confirm Kernel Restart").or_(
        page.get_by_role("button", name="Restart", exact=True)
    ).click()
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
    page.wait_for_function(f"{prompts}.every(text => /\\[\\d+\\]/.test(text))", timeout=seconds * 1000)

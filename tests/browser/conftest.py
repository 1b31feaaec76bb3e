"""A real JupyterLab on loopback, and notebooks opened in chromium. One server and one browser for the module:
Playwright keeps an event loop running in its thread, which no other test may meet.

Screenshots go to the folder in ITPO_SCREENSHOTS (default: a temporary one). Without chromium the tests
skip, or fail where ITPO_REQUIRE_BROWSER=1 says that it has to be there.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from PIL import Image

START_SECONDS, RUN_SECONDS = 90, 120
QUIET = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
}


def chromium() -> str:
    """Where chromium is; no chromium skips the test, or fails it where it is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "chromium is not installed: apt-get install chromium"
        if os.environ.get("ITPO_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """The folder for pictures."""
    folder = Path(os.environ.get("ITPO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser():
    """Headless chromium."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """(address, folder) of a JupyterLab that keeps all its state in a temporary folder."""
    root = tmp_path_factory.mktemp("lab")
    settings, work = root / "settings", root / "work"
    work.mkdir()
    for name, content in QUIET.items():
        (settings / name).parent.mkdir(parents=True, exist_ok=True)
        (settings / name).write_text(json.dumps(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {"JUPYTER_CONFIG_DIR": "config", "IPYTHONDIR": "ipython", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings), "OMP_NUM_THREADS": "1"}
    environment |= {name: str(root / folder) for name, folder in homes.items()}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--PasswordIdentityProvider.password_required=False",
        f"--ServerApp.root_dir={work}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    with (root / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: ask(f"{address}/api/status"), START_SECONDS, lambda: (root / "log").read_text()[-2000:])
        yield address, work
    finally:
        server.terminate()
        server.wait(20)


def ask(address: str):
    """The JSON at an address; None while nobody answers."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def wait_for(condition, seconds: float, report=lambda: ""):
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing after {seconds} s. {report()}"
        time.sleep(0.2)
    return found


class Notebook:
    """A notebook in JupyterLab, all its cells run, and everything that the browser complained about."""

    def __init__(self, browser, address: str, folder: Path, name: str, cells: list[str], screenshots: Path):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, folder / f"{name}.ipynb")
        self.name, self.screenshots, self.complaints = name, screenshots, []
        self.page = browser.new_page(viewport={"width": 1180, "height": 1800})
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._same_origin(request.url, address))
        self.page.set_default_timeout(20_000)
        self.page.goto(f"{address}/doc/tree/{name}.ipynb", wait_until="domcontentloaded")
        wait_for(lambda: self._kernel_idle(address), RUN_SECONDS)
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        self.page.locator(".itpo").first.wait_for(timeout=RUN_SECONDS * 1000)

    def _kernel_idle(self, address: str) -> bool:
        sessions = ask(f"{address}/api/sessions") or []
        ours = [s for s in sessions if s["path"] == f"{self.name}.ipynb"]
        return bool(ours) and ours[0]["kernel"]["execution_state"] == "idle"

    def _listen(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _same_origin(self, url: str, address: str) -> None:
        """No CDN, nothing from anywhere but the server: the widgets have to work offline."""
        if not url.startswith((f"{address}/", f"{address.replace('http', 'ws', 1)}/", "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    def theme(self, name: str) -> None:
        """Switch JupyterLab to "Light" or "Dark"."""
        change = "name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab ' + name })"
        self.page.evaluate(change, name)
        self.page.locator(f"body[data-jp-theme-light='{str(name == 'Light').lower()}']").wait_for(state="attached")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def picture(self, name: str) -> None:
        """Save what the widget looks like, in a palette of 128 colours: the documentation shows these files."""
        picture = Image.open(io.BytesIO(self.page.locator(".itpo").first.screenshot()))
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
            self.screenshots / f"{name}.png", optimize=True
        )

    def close(self) -> None:
        """Close the page; anything that the browser complained about is a failure."""
        self.page.close()
        assert not self.complaints


@pytest.fixture
def notebook(browser, lab, screenshots):
    """A function that opens a notebook with the given cells, and checks the browser's console at the end."""
    address, folder = lab
    opened: list[Notebook] = []

    def run(name: str, *cells: str) -> Notebook:
        opened.append(Notebook(browser, address, folder, name, list(cells), screenshots))
        return opened[-1]

    yield run
    for book in opened:
        book.close()

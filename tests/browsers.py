"""Notebooks in a real browser: one Jupyter server on a free port of this machine, and Chromium without a window."""
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--autoplay-policy=no-user-gesture-required"]
PLACES = {"lab": "lab/tree/{}?reset", "notebook": "notebooks/{}", "voila": "voila/render/{}"}
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


def write_notebook(path, *cells):
    "A notebook file with these code cells."
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}})
    nbformat.write(notebook, path)
    return path


class Jupyter:
    "JupyterLab, Notebook 7 and Voilà behind one server, in a folder of its own; kernels are the running Python."
    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        places = {name: folder / ".jupyter" / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
                                                                        "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
        for place in places.values():
            place.mkdir(parents=True)
        self.settings = places["JUPYTERLAB_SETTINGS_DIR"]
        self.set("apputils-extension/notification", NO_NEWS)
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ServerApp.jpserver_extensions={'jupyterlab':True,'notebook':True,'voila':True}",
                   f"--ServerApp.port={self.url.split(':')[-1][:-1]}", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
                   "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True"]
        path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
        with open(folder / ".jupyter" / "log", "wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env={**os.environ, **{name: str(place) for name, place in places.items()}, "PYTHONPATH": path})

    def set(self, name, values):
        "A setting of JupyterLab and Notebook 7, such as the theme."
        file = self.settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))

    def ask(self, path, method="GET"):
        "What the server answers, as JSON."
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, seconds=90):
        "Until it answers."
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            try:
                return self.ask("api/status")
            except OSError:
                time.sleep(0.1)
        raise RuntimeError((self.folder / ".jupyter" / "log").read_text(errors="replace")[-3000:])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def stop_kernels(self):
        "Memory for the next test."
        for session in self.ask("api/sessions"):
            self.delete(f"api/sessions/{session['id']}")
        for kernel in self.ask("api/kernels"):
            self.delete(f"api/kernels/{kernel['id']}")

    def delete(self, path):
        try:
            self.ask(path, "DELETE")
        except OSError:
            pass  # gone already

    def open(self, page, place, notebook, ready, timeout=60):
        """Show a notebook, run all of it, and wait for the selector `ready`; `place` is `lab`, `notebook` or `voila`.

        Voilà runs what it shows; in the others the menu's Run All Cells does, here called by its name.
        """
        page.goto(self.url + PLACES[place].format(notebook), wait_until="commit")
        if place != "voila":
            page.wait_for_function("""() => { const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
                return context?.isReady && context.session?.kernel?.status === "idle" && document.querySelector(".jp-Notebook .jp-Cell"); }""", timeout=1000 * timeout)
            page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(ready, timeout=1000 * timeout)
        return page


@contextmanager
def jupyter(folder):
    "A `Jupyter` that answers, and is stopped afterwards."
    server = Jupyter(folder)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@contextmanager
def chromium(*arguments):
    "A browser, with more `arguments` if need be; skips where there is none."
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def new_page(browser, theme="light", width=1200, height=900, touch=False):
    "A page in which errors of our widgets fail the test; nothing outside this machine is reached."
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, service_workers="block")
    context.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), lambda route: route.abort())
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(error.stack) if "blob:" in (error.stack or "") else None)  # from there anywidget loads them
    try:
        yield page
        assert not errors, errors
    finally:
        context.close()


def page_samples(page, name):
    "What the page's player holds for a version, `(channels, frames)` float32."
    read = """name => { const { buffer } = document.querySelector(".tp-player").player.sounds.get(name); return [...Array(buffer.numberOfChannels).keys()].map(k => {
        const bytes = new Uint8Array(buffer.getChannelData(k).buffer); let text = "";
        for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
        return btoa(text); }); }"""
    return np.stack([np.frombuffer(base64.b64decode(channel), np.float32) for channel in page.evaluate(read, name)])

"""Serving the ranking page: in this process, or in a child that ends with its parent.

One process, one worker: everything that must last is in the label store, so a restart loses
nothing and nobody has to sign in again.
"""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import ConfigError, LabelError
from labeling_ui.sessions import MIN_TOKEN_CHARACTERS, is_loopback
from labeling_ui.store import LabelStore

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "ALIGNFLOW_LABEL_TOKEN"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 10.0
PARENT_CHECK_S = 1.0
LOCAL_LEAD = "local lead"
"""Whom the link that the command prints signs in."""


def serve(
    store_path: Path | str,
    round_id: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7861,
    token: str | None = None,
    accounts_only: bool = False,
    simulated: bool = False,
    artifacts: Path | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves the site until Ctrl-C; `announce` gets a line with its address, and one with a link
    that signs in as a lead, once.

    Without `round_id` the newest open round for people is served. Where other machines can
    connect, signing in takes a token: the one given, else that of ALIGNFLOW_LABEL_TOKEN, else one
    that the label database keeps. With `accounts_only` there is no token: a name needs a
    password, which it gets by an invitation. `simulated` serves a round of the simulated panel
    to simulated labelers, on this machine alone. Under `artifacts` a lead finds candidates for
    rounds.

    Raises:
        StoreError: the label database cannot be used.
        LabelError: there is no such round, or simulated labelers rank it.
        ConfigError: the port is taken, or the token is too short.
    """
    token = None if accounts_only else _token_for(store_path, host, token)
    if simulated:
        _check_simulated(store_path, round_id, host)
    else:
        check_round(store_path, round_id)
    with _listen(host, port) as listener:
        announce(f"Ranking page: {_address(listener, host, token)}")
        announce(f"Lead's page (this link works once): {_lead_link(listener, host, store_path)}")
        run_on(
            listener,
            store_path,
            round_id,
            host=host,
            token=token,
            accounts_only=accounts_only,
            artifacts=artifacts,
        )


def run_on(
    listener: socket.socket,
    store_path: Path | str,
    round_id: str | None,
    *,
    host: str,
    token: str | None,
    accounts_only: bool = False,
    artifacts: Path | None = None,
    parent: int | None = None,
) -> None:
    """Serves on a socket that already listens, until stopped or until process `parent` is gone."""
    # Gradio reads it on import and would send usage figures otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import uvicorn

    from labeling_ui.web import web_application

    with LabelStore.open(store_path) as store:
        site = web_application(
            store,
            round_id=round_id,
            token=token,
            loopback_only=is_loopback(host),
            accounts_only=accounts_only,
            artifacts=artifacts,
        )
        config = uvicorn.Config(
            site, log_level="warning", timeout_graceful_shutdown=2, server_header=False
        )
        server = uvicorn.Server(config)
        if parent is not None:
            threading.Thread(target=_end_with, args=(parent, server), daemon=True).start()
        server.run(sockets=[listener])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A ranking page in a child process. `url` opens it, its token included where one is needed.

    `gradio_version` is the version that the process has loaded.
    """

    url: str
    gradio_version: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Ends the server; submitted rankings are on disk already. Twice does no harm."""
        _stop(self.process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_server_process(
    store_path: Path,
    round_id: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    artifacts: Path | None = None,
) -> ServerProcess:
    """Starts the page in a process of its own and returns once it answers.

    The child has its own session, so Ctrl-C does not reach it, and ends within seconds when the
    process that started it is gone, however that ended. `port` 0 takes a free one. Its log is
    kept beside the database.

    Raises:
        StoreError, LabelError, ConfigError: as `serve`; also when the page does not come up.
    """
    token = _token_for(store_path, host, token)
    check_round(store_path, round_id)
    log_path = store_path.with_suffix(".server.log")
    with _listen(host, port) as listener, log_path.open("wb") as log:
        command = [sys.executable, "-m", "labeling_ui", "--store", str(store_path.resolve())]
        command += [
            "--host",
            host,
            "--socket",
            str(listener.fileno()),
            "--parent",
            str(os.getpid()),
        ]
        command += ["--round", round_id] if round_id else []
        command += ["--candidates", str(artifacts.resolve())] if artifacts else []
        process = subprocess.Popen(
            command,
            pass_fds=[listener.fileno()],
            env=os.environ | {TOKEN_VARIABLE: token or ""},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        url = _address(listener, host, token)
        port = listener.getsockname()[1]
    try:
        gradio_version = _wait_until_healthy(process, host, port, log_path)
    except BaseException:
        _stop(process)
        raise
    return ServerProcess(url=url, gradio_version=gradio_version, process=process)


def _check_simulated(store_path: Path | str, round_id: str | None, host: str) -> None:
    if not is_loopback(host):
        raise ConfigError(f"simulated labelers are served on this machine alone, not on {host}")
    if round_id is None:
        raise ConfigError("name the round that simulated labelers are to rank (--round)")
    with LabelStore.open(store_path) as store:
        panel = store.progress(round_id).panel
    if not panel.startswith("simulated"):
        raise LabelError(
            f"round {round_id} is for {panel or 'people'}; serve it without --simulated, or "
            "publish one for the panel: alignflow label simulate CANDIDATES --publish-only"
        )


def check_round(store_path: Path | str, round_id: str | None) -> None:
    """Refuses a round that this page could not serve, before anything is started."""
    with LabelStore.open(store_path) as store:
        if round_id is None:
            return
        status = store.progress(round_id)
    if status.panel:
        raise LabelError(
            f"round {round_id} is ranked by simulated labelers ({status.panel}); people cannot "
            "rank in it. Publish the candidates without a panel"
        )


def _token_for(store_path: Path | str, host: str, token: str | None) -> str | None:
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(
            f"the access token has {len(token)} characters; use {MIN_TOKEN_CHARACTERS} or more, "
            "or leave it out to have one drawn"
        )
    if token is not None or is_loopback(host):
        return token
    with LabelStore.open(store_path) as store:  # kept, so that a restart signs nobody out
        return store.access_token()


def _lead_link(listener: socket.socket, host: str, store_path: Path | str) -> str:
    from labeling_ui.accounts import invite

    with LabelStore.open(store_path) as store:
        key = invite(store, LOCAL_LEAD, role="lead", actor="command line")
    return f"{_address(listener, host, None)}enter?key={key}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"the ranking page cannot listen on {host}:{port}: {error.strerror or error}. Choose "
            "another port, or 0 for a free one"
        ) from error


def _address(listener: socket.socket, host: str, token: str | None) -> str:
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    query = f"/?token={token}" if token else "/"
    return f"http://{shown}:{listener.getsockname()[1]}{query}"


def _end_with(parent: int, server: object) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    server.should_exit = True  # type: ignore[attr-defined]


def _wait_until_healthy(
    process: subprocess.Popen[bytes], host: str, port: int, log_path: Path
) -> str:
    """The version of gradio that the healthy page has loaded."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    reachable = f"[{reachable}]" if ":" in reachable else reachable
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            # An empty ProxyHandler: a proxy of the environment has no business here.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://{reachable}:{port}/healthz", timeout=2) as answer:
                if answer.status == 200:
                    return str(json.load(answer)["gradio"])
        time.sleep(0.1)
    state = "did not answer" if process.poll() is None else f"ended with {process.returncode}"
    tail = log_path.read_text("utf-8", "replace").strip()[-1500:]
    raise ConfigError(f"the ranking page {state} within {START_TIMEOUT_S:.0f} s; its log: {tail}")

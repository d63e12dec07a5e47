"""A Ray head with its job server, of a test's own: what a cluster's head is to a run."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from alignment.cluster.head import head_command, head_environment
from alignment.cluster.jobs import JobServer
from alignment.errors import AlignmentError

ROOT = Path(__file__).parents[2]


class RayHead:
    """Started on entry, ended with everything it started on exit."""

    def __init__(self, folder, environ=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.log = folder / "head.log"
        self.environ = dict(head_environment(self.token)) | {"PYTHONPATH": str(ROOT)}
        self.environ |= {"PYTHONDONTWRITEBYTECODE": ""} | (environ or {})
        self.url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="afh-", dir="/tmp"))
        self.start()
        return self

    def __exit__(self, *error):
        self.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start(self):
        command = head_command(
            port=free_port(),
            dashboard_port=int(self.url.rpartition(":")[2]),
            temp_folder=self.scratch,
            object_store_gib=0.25,
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                self.server().jobs()
                return
            except AlignmentError as error:
                told = f"{error}\n{self.log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, told
                assert self.process.poll() is None, told
                time.sleep(0.5)

    def kill(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def server(self):
        """The job server, asked from this process."""
        before = {name: os.environ.get(name) for name in self.environ}
        os.environ.update(self.environ)
        try:
            return JobServer(self.url)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def alignflow(self, folder, *arguments):
        """A command of ours, begun in a folder, whose stages are jobs of this head."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments, f"--set=cluster.job_server={self.url}"],
            cwd=folder,
            env=os.environ | self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]

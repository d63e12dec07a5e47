"""moto's S3 server on loopback, and an environment that points to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a running S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def s3_environment(address: str) -> dict[str, str]:
    """What programs need in order to find the server at `address`."""
    return {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{address}",
    }


def point_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let this process, and what it starts, find that server and no other."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in s3_environment(address).items():
        monkeypatch.setenv(name, value)

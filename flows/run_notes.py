"""Notes that a flow run keeps in Prefect's database, as JSON under a key; written once."""

import json
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError

_NOT_FOUND, _CONFLICT = 404, 409


def keep_note(client: SyncPrefectClient, flow_run_id: UUID, key: str, value: Any) -> None:
    """Write a note; does nothing if there is one under this key."""
    try:
        client.create_flow_run_input(flow_run_id, key, json.dumps(value))
    except PrefectHTTPStatusError as error:
        if error.response.status_code != _CONFLICT:
            raise


def read_note(client: SyncPrefectClient, flow_run_id: UUID, key: str) -> Any:
    """A note; None if there is none."""
    try:
        return json.loads(client.read_flow_run_input(flow_run_id, key))
    except PrefectHTTPStatusError as error:
        if error.response.status_code != _NOT_FOUND:
            raise
        return None

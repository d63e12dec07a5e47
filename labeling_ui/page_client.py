"""One labeler at a served ranking page, without a browser: the requests that the page makes.

Signs in by the form, finds the page's component in Gradio's configuration, and calls the same
server functions. As the page does, it keeps an answer that was not acknowledged and sends it
again under the same id until it is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from alignment.errors import LabelError
from alignment.records import Message
from labeling_ui.cards import Card, CardResponse
from labeling_ui.sessions import is_loopback

REQUEST_TIMEOUT_S = 30.0
RETRY_AFTER_S = 0.2
_COMPONENT = "ranking"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An acknowledged ranking: whether it counted, seconds of the last try, tries in all."""

    submission_id: str
    counted: bool
    seconds: float
    tries: int


def check_address(url: str) -> None:
    """Refuses anything but plain HTTP to this very machine.

    Raises:
        LabelError: another host, or no http address.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
        raise LabelError(
            f"{url!r} is not on this machine: simulated labelers drive a server on loopback only, "
            "such as http://127.0.0.1:7861/"
        )


class PageClient:
    """A labeler's session. `patience_s` bounds how long one request is tried again."""

    def __init__(self, url: str, name: str, *, patience_s: float = 60.0) -> None:
        check_address(url)
        parts = urlsplit(url)
        self.name = name
        self._token = parse_qs(parts.query).get("token", [""])[0]
        self._patience_s = patience_s
        self._component: int | None = None
        origin = f"{parts.scheme}://{parts.netloc}"
        self._http = httpx.Client(
            base_url=origin,
            headers={"origin": origin},
            timeout=REQUEST_TIMEOUT_S,
            trust_env=False,  # a proxy of the environment has no business here
        )
        self.retries = 0

    def close(self) -> None:
        """Closes the connection; what was acknowledged stays."""
        self._http.close()

    def sign_in(self) -> None:
        """Signs in by the form.

        Raises:
            LabelError: the server refuses the name or the token.
        """
        form = {"name": self.name, "password": "", "token": self._token}
        answer, _ = self._again(lambda: self._http.post("/sign-in", data=form))
        if answer.status_code != 303:
            raise LabelError(
                f"{self.name!r} cannot sign in ({answer.status_code}): a page for simulated "
                "labelers is served by `alignflow label serve --simulated --round ROUND`"
            )

    def next_card(self, *, beside: str | None = None) -> Card | None:
        """The card held or the next one; accepts guidelines where asked. None: nothing left now."""
        while True:
            data, _ = self.call("rank_next", {"beside": beside} if beside else {})
            if data.get("state") != "guidelines":
                return None if data["card"] is None else _card(data["card"])
            self.call("rank_accept", {"version": data["version"]})

    def submit(self, card: Card, tiers: Sequence[int], *, submission_id: str) -> Saved:
        """Sends a ranking until it is acknowledged.

        Raises:
            LabelError: the server refuses it, or does not answer within the patience.
        """
        sent = {
            "assignment_id": card.assignment_id,
            "submission_id": submission_id,
            "tiers": list(tiers),
            "active_seconds": 0.0,
        }
        before = self.retries
        data, seconds = self.call("rank_submit", sent)
        return Saved(
            submission_id=data["submission_id"],
            counted=data["counted"],
            seconds=seconds,
            tries=1 + self.retries - before,
        )

    def call(self, function: str, data: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """What a server function of the page answers, and the seconds of the try that did."""
        deadline = time.monotonic() + self._patience_s
        while True:
            answer, seconds = self._again(lambda: self._post(function, data))
            said = _envelope(answer)
            if said.get("ok"):
                return said["data"], seconds
            code, message = said.get("code", ""), said.get("message", f"code {answer.status_code}")
            if code == "signed_out" or answer.status_code == 401:
                self.sign_in()
            elif code != "unavailable" and answer.status_code < 500:
                raise LabelError(f"{function} of {self.name!r} was refused: {message}")
            if time.monotonic() > deadline:
                raise LabelError(f"{function} of {self.name!r} has failed too long: {message}")
            self._pause()

    def _post(self, function: str, data: Mapping[str, Any]) -> httpx.Response:
        if self._component is None:
            config = self._http.get("/rank/config")
            if config.status_code != 200:
                return config
            self._component = next(
                part["id"]
                for part in config.json()["components"]
                if part["props"].get("elem_id") == _COMPONENT
            )
        body = {
            "data": dict(data),
            "component_id": self._component,
            "fn_name": function,
            "session_hash": f"client{id(self):x}",
        }
        return self._http.post("/rank/gradio_api/component_server", json=body)

    def _again(self, send: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
        deadline = time.monotonic() + self._patience_s
        while True:
            begun = time.perf_counter()
            try:
                return send(), time.perf_counter() - begun
            except httpx.TransportError as error:
                # A restarted server may number its components anew.
                self._component = None
                if time.monotonic() > deadline:
                    raise LabelError(f"the ranking page does not answer: {error!r}") from error
                self._pause()

    def _pause(self) -> None:
        self.retries += 1
        time.sleep(RETRY_AFTER_S)


def _envelope(answer: httpx.Response) -> dict[str, Any]:
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _card(payload: Mapping[str, Any]) -> Card:
    """The card as the page shows it; which task it is, the page does not learn."""
    return Card(
        assignment_id=payload["assignment_id"],
        task_id="",
        messages=tuple(Message(role=m["role"], content=m["text"]) for m in payload["messages"]),
        language=payload["language"],
        responses=tuple(
            CardResponse(label=r["label"], text=r["text"], cut_off=r["cut_off"])
            for r in payload["responses"]
        ),
    )

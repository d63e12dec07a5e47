"""Binds work to events of the lead's page, so that it is refused to anyone but a lead."""

import html
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from alignment.errors import AlignmentError
from labeling_ui.identity import Identity
from labeling_ui.lead_page.words import Translate, translator


@dataclass(frozen=True, slots=True)
class Visitor:
    """The lead who calls; `t` has words in their language, `origin` is the site as they see it."""

    name: str
    t: Translate
    origin: str


class Wiring:
    """`on(event, work, inputs, outputs)`: `work(visitor, *inputs)` at the event."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def __call__(
        self,
        event: Callable[..., Any],
        work: Callable[..., Any],
        inputs: Any,
        outputs: Any,
        *,
        quiet: bool = False,
        js: str | None = None,
    ) -> Any:
        """What `work` refuses is told on the page; with `quiet` nothing shows that it runs.

        `js` is a function of the inputs that runs in the browser first and gives them anew.
        """

        def handler(request: gr.Request, *values: Any) -> Any:
            # Queued events carry Gradio's own request, with the real one inside.
            asked = getattr(request, "request", request)
            person = self._identity.lead(asked.cookies)
            if person is None:
                raise gr.Error("This needs a lead's sign-in.", print_exception=False)
            headers = asked.headers
            t = translator(headers.get("accept-language", ""))
            try:
                return work(Visitor(person.name, t, headers.get("origin", "")), *values)
            except AlignmentError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        # Gradio reads from the signature where the request goes and how many values come.
        takes = list(inspect.signature(work).parameters.values())[1:]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        asks = inspect.Parameter("request", kind, annotation=gr.Request)
        vars(handler)["__signature__"] = inspect.Signature([asks, *takes])
        return event(
            handler,
            inputs,
            outputs,
            api_visibility="private",
            show_progress="hidden" if quiet else "minimal",
            js=js,
        )

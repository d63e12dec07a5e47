"""GET /export: a round's tables for a lead, as one archive."""

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment.errors import AlignmentError
from labeling_ui import audit
from labeling_ui.identity import Identity
from labeling_ui.parquet_export import ExportFilter
from labeling_ui.store import LabelStore
from labeling_ui.training_tables import training_archive

EXPORT_PATH = "/export"


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")

    round: str = Field(max_length=80)
    without: list[str] = Field(default=[], max_length=1000)
    heldout_share: float = Field(default=0.1, ge=0, le=0.9)
    seed: int = Field(default=0, ge=0)


def add_export(site: FastAPI, store: LabelStore, identity: Identity) -> None:
    """Adds the route. It answers leads alone; others learn nothing, not even of rounds."""

    def export(request: Request) -> Response:
        person = identity.lead(request.cookies)
        if person is None:
            return PlainTextResponse("This needs a lead's sign-in.", 401)
        asked = request.query_params
        try:
            fields = {**dict(asked), "without": asked.getlist("without")}
            query = _Query.model_validate(fields)
            chosen = ExportFilter(
                without=tuple(sorted(query.without)),
                heldout_share=query.heldout_share,
                seed=query.seed,
            )
            packed = training_archive(store, query.round, chosen)
        except ValidationError as error:
            wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
            return PlainTextResponse(f"The export cannot be made so: {wrong}.", 400)
        except AlignmentError as error:
            return PlainTextResponse(f"The export cannot be made: {error}", 400)
        with store.write() as connection:
            audit.record(
                connection,
                store.now_ms(),
                person.name,
                "export",
                query.round,
                without=", ".join(chosen.without) or "nobody",
                heldout_share=chosen.heldout_share,
                seed=chosen.seed,
            )
        name = f"labels-{query.round[:8]}.zip"
        told = {
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "no-store",
        }
        return Response(packed, media_type="application/zip", headers=told)

    site.add_api_route(EXPORT_PATH, export, methods=["GET"], response_model=None)

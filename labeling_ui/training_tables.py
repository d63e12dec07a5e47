"""A round's labels as a folder or one archive: its tables, and what reward models train on."""

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from alignment.data.tables import write_records
from alignment.records import PreferenceGroup
from alignment.statistics.consensus import consensus
from labeling_ui.labelers import WITHOUT_TEXTS
from labeling_ui.parquet_export import (
    ExportFilter,
    candidates_and_rankings,
    export_round,
    split_of,
)
from labeling_ui.store import LabelStore

GROUPS = {"train": "preference_groups.parquet", "heldout": "heldout_preference_groups.parquet"}


def write_training_tables(
    store: LabelStore, round_id: str, folder: Path, chosen: ExportFilter
) -> dict[str, Any]:
    """As `export_round`, with the preference groups of each split beside it, if texts are known.

    Raises:
        LabelError: the folder has something in it, or no ranking is left by the filter.
    """
    manifest = export_round(store, round_id, folder, chosen)
    if store.progress(round_id).panel.endswith(WITHOUT_TEXTS):
        return manifest
    groups = consensus(*candidates_and_rankings(store, round_id, chosen))
    for split, name in GROUPS.items():
        kept = [group for group in groups if split_of(group.prompt.id, chosen) == split]
        if kept:
            write_records(folder / name, kept, PreferenceGroup)
    return manifest


def training_archive(store: LabelStore, round_id: str, chosen: ExportFilter) -> bytes:
    """All of it as a ZIP archive; the same labels and filter give the same bytes."""
    packed = io.BytesIO()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "round"
        write_training_tables(store, round_id, folder, chosen)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                # The date of every entry is ZIP's first one: nothing says when it was packed.
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return packed.getvalue()

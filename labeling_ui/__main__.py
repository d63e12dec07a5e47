"""`python -m labeling_ui`: serve the ranking page of a label database."""

import argparse
import os
import socket
import sys
from pathlib import Path

from alignment.errors import AlignmentError
from labeling_ui.server import TOKEN_VARIABLE, run_on, serve


def main(arguments: list[str] | None = None) -> int:
    """Serves until stopped; 2 after a message on standard error if it cannot."""
    options = _parser().parse_args(arguments)
    try:
        if options.socket is None:
            serve(
                options.database or options.store,
                options.round,
                host=options.host,
                port=options.port,
                simulated=options.simulated,
                artifacts=options.candidates,
            )
        else:
            run_on(
                socket.socket(fileno=options.socket),
                options.store,
                options.round,
                host=options.host,
                token=os.environ.get(TOKEN_VARIABLE) or None,
                artifacts=options.candidates,
                parent=options.parent,
            )
    except KeyboardInterrupt:
        return 130
    except AlignmentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m labeling_ui",
        description="Serve the page on which people rank responses.",
        epilog=f"Where other machines can connect, signing in takes an access token: the value of "
        f"{TOKEN_VARIABLE}, else one drawn at the start and printed with the address.",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--store", type=Path, help="label database (SQLite file)")
    place.add_argument("--database", metavar="URL", help="label database (postgresql://...)")
    parser.add_argument("--round", help="round to rank; absent: the newest open one for people")
    parser.add_argument(
        "--candidates",
        type=Path,
        metavar="FOLDER",
        help="where a lead finds candidates.parquet files for new rounds",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7861, help="port; 0: a free one (%(default)s)")
    parser.add_argument("--simulated", action="store_true", help="serve a simulated panel's round")
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

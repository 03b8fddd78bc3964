"""`snello view`: show the pages of several runs in a browser, side by side."""

from __future__ import annotations

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from snello.errors import ConfigError

HELP = "serve the report.html of every run below a folder on this machine, with a comparison"
EPILOG = "example: snello view runs"
ADDRESS = "127.0.0.1"
"""Pages are served to this machine alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("folder", help="a folder of runs")
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on; default: any that is free"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve the folder until the process is interrupted.

    Raises:
        ConfigError: if the folder has no page.
    """
    with server(Path(arguments.folder), arguments.port) as serving:
        print(f"http://{ADDRESS}:{serving.server_port}/ (stop with Ctrl-C)", flush=True)
        serving.serve_forever()


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the pages below a folder; its first page compares their figures.

    Raises:
        ConfigError: if the folder has no page, or the port is taken.
    """
    from snello.lab.reporting.pages import comparison

    text = comparison(folder)
    if text is None:
        raise ConfigError(
            f"{folder}: there is no report.html below it; 'snello journey', 'train', 'prune', 'sweep' and "
            "'measure' write one"
        )
    handler = partial(_Handler, directory=str(folder), comparison=text)
    try:
        return ThreadingHTTPServer((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port={port}: {error}; choose another one, or none") from error


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder, and the comparison at its root; nothing is logged."""

    def __init__(self, *arguments: Any, comparison: str, **options: Any) -> None:
        self._comparison = comparison.encode()
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        """Answer a request."""
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self._comparison)))
        self.end_headers()
        self.wfile.write(self._comparison)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""

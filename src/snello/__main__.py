"""Entry point of the command `snello`, and of `python -m snello`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C before it has been imported ends the process quietly."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli import main as run  # noqa: PLC0415

    signal.signal(signal.SIGINT, handler)
    return run()


if __name__ == "__main__":
    # 'python -m' puts the working folder on the import path, the command 'snello' does not. It is
    # taken off so that no file there is imported by accident; snello.cli looks up users' factories
    # there by name.
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
    sys.exit(main())

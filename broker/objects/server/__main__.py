"""`python -m broker.objects.server`: serve S3 from a directory until ended by SIGTERM.

One line of JSON goes to standard output: `{"url": …, "pid": …}` when requests are answered, or
`{"error": …}` before exit status 78 (EX_CONFIG) when the set-up is wrong. Logs go to standard error.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from broker.objects.server.layout import SetupError, listen_socket, prepare

_PR_SET_PDEATHSIG = 1  # prctl(2)
_EX_CONFIG = 78  # sysexits.h


def main() -> int:
    """Parse the arguments, prepare the directory and serve."""
    args = _arguments()
    if args.parent_pid and not _die_with(args.parent_pid):
        return 0
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # what is stored is on disk; the rest is repeated
    try:
        layout = prepare(args.root)
        front = listen_socket(layout, args.host, args.port)
        from broker.objects.server.process import serve  # patches the process, so only now

        host, port = front.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        serve(layout, front, args.cors_origin or ["*"], lambda: _say(url=url, pid=os.getpid()))
    except SetupError as error:
        _say(error=str(error))
        return _EX_CONFIG
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m broker.objects.server", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="directory of keys and data")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, kept from then on (%(default)s)")
    parser.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="origin whose pages may use presigned URLs; repeatable (default: any, the URL is the secret)",
    )
    parser.add_argument("--parent-pid", type=int, help="end when this process, which started this one, ends")
    return parser.parse_args()


def _die_with(parent: int) -> bool:
    """Be ended with the parent; False if that has ended already. A terminal's ^C is the parent's affair."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return os.getppid() == parent


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

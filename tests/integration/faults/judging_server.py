"""Servers of `sgpipe view`, forked when they are asked for from a process that has imported everything.

Usage: python -m tests.integration.faults.judging_server RUN, then a port per line of standard input. Each is answered
by a line with the process that serves there.
"""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from sgpipe.storage.index import Index
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.utils.console import Progress
from sgpipe.view.app import LOCAL, create_app, listen, serve
from sgpipe.view.security import Access
from sgpipe.view.web import Viewer


def run_server(root: Path, port: int) -> None:
    address = listen(LOCAL, port)
    index = Index.open(root, Progress(Console(quiet=True)))
    log = JudgementLog(root / JUDGEMENTS, index.fingerprint)
    print(address.port, os.getpid(), flush=True)
    serve(create_app(Viewer("run", index, log), Access()), address)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if not os.fork():
            run_server(Path(sys.argv[1]), int(line))
            os._exit(0)


if __name__ == "__main__":
    main()

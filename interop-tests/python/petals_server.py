"""A Petals 2.2.0 server: `python -m petals.cli.run_server` with the same arguments, made to run as a test's child.

It says on stderr, in Petals' own log lines, `Running a server on [ADDR, …]` and, once it serves, `Started`.
"""

import os

import peer  # restores Ctrl-C
import torch
import petals.cli.run_server as run_server

if __name__ == "__main__":
    # Beside other tests threads would only fight over the cores; a benchmark gives them all.
    torch.set_num_threads(int(os.environ.get("SERVER_THREADS", "1")))
    run_server.validate_version = lambda: None  # asks a registry for news
    try:
        run_server.main()
    finally:
        peer.finish(0)

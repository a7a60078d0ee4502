"""`alinfik-server` under cProfile, from SIGUSR1 on, so that its start is not in the account.

    python -m benchmarks.profiled PROFILE --bundle BUNDLE

cProfile sees the thread that it was switched on in: the event loop's, and none of those in which
texts are tokenised and the model runs.
"""

import cProfile
import signal
import sys

from alinfik.server.__main__ import main


def profiled() -> None:
    """Run the server; write the profile when it ends."""
    path = sys.argv.pop(1)
    profile = cProfile.Profile()
    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    try:
        main()
    finally:
        profile.disable()
        profile.dump_stats(path)


if __name__ == "__main__":
    profiled()

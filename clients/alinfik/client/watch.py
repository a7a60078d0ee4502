"""`alinfik watch`: valuations as they land, as JSON lines or as a table that grows."""

from collections import deque
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live

from alinfik.client.output import table, to_json
from alinfik.v1 import Valuation


def show_valuations(valuations: Iterable[Valuation]) -> None:
    """Print each valuation the moment it comes.

    Args:
        valuations: may be endless; the table on a terminal keeps the last that fit its height.
    """
    console = Console()
    if not console.is_terminal:
        for valuation in valuations:
            print(to_json(valuation), flush=True)
        return
    shown: deque[Valuation] = deque(maxlen=max(1, console.height - _LINES_AROUND_ROWS))
    count = 0
    with Live(console=console, auto_refresh=False) as live:
        for count, valuation in enumerate(valuations, 1):
            shown.append(valuation)
            live.update(table(shown, f"{count} valuations so far"), refresh=True)


# Border, heading and caption of the table, and the prompt's line below it.
_LINES_AROUND_ROWS = 7

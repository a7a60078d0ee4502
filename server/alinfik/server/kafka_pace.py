"""How many records the next batch may hold.

Comes in: how long batches took. Goes out: a number of records. Knows nothing of Kafka.
"""

# A batch is what a rebalance and a stop wait for, and what is done again after a failure; and its
# commit costs some 20 ms, whatever its size. At half a second that is 4 %.
BATCH_SECONDS = 0.5
# Little enough for the slowest proxy, and to begin with.
FEWEST = 32


class Pace:
    """Batches of about ``BATCH_SECONDS``, while the input is behind; what is there, while not.

    Args:
        most: records, however fast.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.records = min(FEWEST, most)

    def took(self, records: int, seconds: float) -> None:
        """Learn from a batch: its records, and the time from the one before it to its commit."""
        affordable = int(records * BATCH_SECONDS / max(seconds, 1e-3))
        if records >= self.records:
            # Twice as many at most: the first ones may have come from the cache.
            affordable = min(affordable, 2 * self.records)
        elif seconds <= BATCH_SECONDS:
            # It held all that was there, which says little of how many it could have held.
            return
        self.records = max(min(FEWEST, self._most), min(affordable, self._most))

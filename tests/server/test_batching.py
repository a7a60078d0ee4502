from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from alinfik.server.batching import BatchQueue, Priority


@dataclass(eq=False)
class Row:
    length: int
    priority: Priority
    age: int


rows = st.lists(st.tuples(st.integers(0, 300), st.sampled_from(Priority)), max_size=60)
budgets = st.integers(1, 1000)


def filled(given_rows: list[tuple[int, Priority]]) -> tuple[BatchQueue[Row], list[Row]]:
    queue: BatchQueue[Row] = BatchQueue()
    entries = [Row(length, priority, age) for age, (length, priority) in enumerate(given_rows)]
    for entry in entries:
        queue.push(entry, entry.priority)
    return queue, entries


def drained(queue: BatchQueue[Row], budget: int) -> list[list[Row]]:
    batches = []
    while batch := queue.take(budget):
        batches.append(batch)
    return batches


@given(rows, budgets)
def test_everything_comes_out_once(given_rows: list[tuple[int, Priority]], budget: int) -> None:
    queue, entries = filled(given_rows)
    out = [row for batch in drained(queue, budget) for row in batch]
    assert sorted(row.age for row in out) == [row.age for row in entries]
    assert len(queue) == 0


@given(rows, budgets)
def test_padded_tokens_keep_to_the_budget_but_for_a_lone_giant(
    given_rows: list[tuple[int, Priority]], budget: int
) -> None:
    for batch in drained(filled(given_rows)[0], budget):
        assert len(batch) == 1 or len(batch) * max(row.length for row in batch) <= budget


@given(rows, budgets, st.integers(0, 60))
def test_no_row_adds_more_padding_than_a_batch_of_its_own_costs(
    given_rows: list[tuple[int, Priority]], budget: int, most: int
) -> None:
    queue, entries = filled(given_rows)
    out: list[Row] = []
    while batch := queue.take(budget, most):
        longest = max(row.length for row in batch)
        assert len(batch) * longest - sum(row.length for row in batch) <= most * (len(batch) - 1)
        out += batch
    assert sorted(row.age for row in out) == [row.age for row in entries]


@given(rows, budgets)
def test_the_oldest_of_the_first_priority_always_goes(
    given_rows: list[tuple[int, Priority]], budget: int
) -> None:
    queue, entries = filled(given_rows)
    while batch := queue.take(budget):
        seed = min(entries, key=lambda row: (row.priority, row.age))
        assert batch[0] is seed
        entries = [row for row in entries if row not in batch]


@given(rows, budgets)
def test_no_stream_entry_takes_the_place_of_an_interactive_one_that_fits(
    given_rows: list[tuple[int, Priority]], budget: int
) -> None:
    queue, entries = filled(given_rows)
    batch = queue.take(budget)
    interactive = [row for row in batch if row.priority is Priority.INTERACTIVE]
    left = [row for row in entries if row not in batch and row.priority is Priority.INTERACTIVE]
    if any(row.priority is Priority.STREAM for row in batch) and left:
        longest = max(row.length for row in interactive)
        fits = [row for row in left if (len(interactive) + 1) * max(longest, row.length) <= budget]
        assert not fits


def test_nearest_lengths_go_together() -> None:
    queue, _ = filled([(length, Priority.STREAM) for length in (100, 9, 101, 300, 99, 10)])
    assert sorted(row.length for row in queue.take(303)) == [99, 100, 101]


@given(rows, budgets, st.data())
def test_what_is_discarded_never_comes_out(
    given_rows: list[tuple[int, Priority]], budget: int, data: st.DataObject
) -> None:
    queue, entries = filled(given_rows)
    gone = [row for row in entries if data.draw(st.booleans())]
    assert all(queue.discard(row, row.priority) for row in gone)
    assert not any(queue.discard(row, row.priority) for row in gone)
    out = [row for batch in drained(queue, budget) for row in batch]
    assert {row.age for row in out} == {row.age for row in entries if row not in gone}

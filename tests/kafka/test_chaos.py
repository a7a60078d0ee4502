"""Exactly once under faults, in the short form; and that the judge sees what is wrong."""

from dataclasses import dataclass, replace
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from alinfik.v1 import TargetValue, Valuation
from tests.kafka.chaos import LONG, SHORT, planned, run
from tests.kafka.conftest import apache_kafka
from tests.kafka.load import GOOD, KIND, POISON, records, sample
from tests.kafka.verdict import judge
from tests.tiny_bundle import expected_values, read_manifest

LARGEST = 2_000_000


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_every_record_has_one_outcome_whatever_is_killed(tmp_path: Path) -> None:
    apache_kafka()
    seed = SystemRandom().randrange(1_000_000)
    print(f"seed {seed}: python -m tests.kafka.chaos --short --seed {seed}")
    report = run(SHORT, seed, tmp_path)
    print(report.summary())
    assert report.holds, (report.verdict, report.errors)
    assert report.verdict.valued + report.verdict.dead_letters == SHORT.records
    assert report.struck == {
        "kill": SHORT.kills,
        "restart_broker": SHORT.broker_restarts,
        "swap_bundle": SHORT.swaps,
        "add_partitions": 1,
    }


@given(st.integers())
def test_a_plan_is_its_seeds(seed: int) -> None:
    faults = planned(LONG, seed)
    assert faults == planned(LONG, seed)
    names = [fault.name for fault in faults]
    assert names.count("kill") == LONG.kills >= 10
    assert names.count("restart_broker") == 3
    assert names.count("move_leaders") == names.count("swap_bundle") == 2
    assert names.index("add_partitions") <= len(names) // 2
    assert [fault.after_records for fault in faults] == sorted(f.after_records for f in faults)


@dataclass(frozen=True)
class Record:
    """What the judge reads of kafka-python's."""

    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp: int = 17


class Topics(NamedTuple):
    """The three, which a test may change."""

    sent: list[Record]
    valued: list[Record]
    letters: list[Record]


@pytest.fixture(scope="module")
def judged(tiny_bundle: Path):
    """Judges a stream in which all is well, but for what a test changes."""
    bundle_id = read_manifest(tiny_bundle).bundle_id
    sent, valuations, letters = [], [], []
    for number, one in enumerate(records(1_000, seed=0)):
        place = number % 3, number // 3
        source = Record(*place, one.key, one.value, list(one.headers))
        sent.append(source)
        origin = [
            ("alinfik-source-partition", b"%d" % place[0]),
            ("alinfik-source-offset", b"%d" % place[1]),
        ]
        kind = dict(one.headers)[KIND].decode()
        if kind == GOOD:
            values, _ = expected_values(tiny_bundle, sample(number)) if number < 9 else ([0], 0)
            valuation = Valuation(
                sample_id=str(number),
                bundle_id=bundle_id,
                values=[TargetValue(value=value) for value in values],
            )
            value = json_format.MessageToJson(valuation).encode()
            headers = [("alinfik-bundle-id", bundle_id.encode()), *origin]
            valuations.append(replace(source, value=value, headers=headers))
        else:
            large = len(one.value or b"") > LARGEST
            why = [("alinfik-reason", POISON[kind][0].encode()), *origin]
            why += [("alinfik-value-bytes", b"%d" % len(one.value))] if large else []
            letters.append(
                replace(source, value=b"" if large else one.value, headers=[*source.headers, *why])
            )

    def judge_them(change=lambda _: None, oracle_samples: int = 0):
        topics = Topics(list(sent), list(valuations), list(letters))
        change(topics)
        return judge(
            topics.sent,
            topics.valued,
            topics.letters,
            bundles={bundle_id: tiny_bundle},
            largest_letter=LARGEST,
            oracle_samples=oracle_samples,
            seed=0,
        )

    return judge_them


def test_the_judge_accepts_what_is_right(judged) -> None:
    verdict = judged()
    assert verdict.holds
    assert (verdict.valued, verdict.dead_letters) == (990, 10)


def swap(topic: list[Record], one: int, other: int) -> None:
    """Change their places in the topic, not what they hold."""
    first, second = topic[one], topic[other]
    topic[one] = replace(second, partition=first.partition, offset=first.offset)
    topic[other] = replace(first, partition=second.partition, offset=second.offset)


def change_last(topic: list[Record], **changes) -> None:
    topic[-1] = replace(topic[-1], **changes)


@pytest.mark.parametrize(
    ("change", "finds"),
    [
        (lambda t: t.valued.pop(5), "lost"),
        (lambda t: t.letters.pop(), "lost"),
        (lambda t: t.valued.append(t.valued[5]), "doubled"),
        (lambda t: t.letters.append(t.valued[5]), "doubled"),
        (lambda t: swap(t.valued, 5, 8), "out_of_order"),
        (lambda t: change_last(t.valued, partition=3), "out_of_order"),
        (lambda t: t.sent.pop(5), "wrong"),
        (lambda t: change_last(t.valued, value=b"{}"), "wrong"),
        (lambda t: change_last(t.valued, key=b"another"), "wrong"),
        (lambda t: change_last(t.valued, timestamp=18), "wrong"),
        (lambda t: change_last(t.letters, value=b"another"), "wrong"),
        (lambda t: change_last(t.letters, key=b"another"), "wrong"),
        (lambda t: change_last(t.letters, timestamp=18), "wrong"),
    ],
)
def test_the_judge_sees_what_is_wrong(judged, change, finds: str) -> None:
    verdict = judged(change)
    assert not verdict.holds
    assert getattr(verdict, finds)


def test_the_judge_computes_values_again(judged) -> None:
    # All but the first nine have none.
    verdict = judged(oracle_samples=990)
    assert verdict.checked_values == 990
    assert len(verdict.wrong) == 981

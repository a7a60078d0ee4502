"""What became of every record: the judge of the chaos test.

Comes in: the input, the valuations and the dead letters as a reader of committed records sees them.
Goes out: a verdict, with every deviation from exactly once. Knows nothing of faults and brokers: it
takes the input topic for what was sent.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from google.protobuf import json_format

from alinfik.v1 import Valuation
from tests.kafka.load import GOOD, KIND, POISON, sample
from tests.tiny_bundle import expected_values

_SOURCE_BYTES = "alinfik-value-bytes"

Place = tuple[int, int]
"""Partition and offset in the input."""


@dataclass
class Verdict:
    """Counts, and what is wrong.

    Attributes:
        lost: places of the input without an outcome.
        doubled: places with more than one.
        out_of_order: outcomes that stand before one of an earlier record of their partition.
        wrong: outcomes that are not what they should be, and why.
        bundles: valuations by the bundle that they name.
        checked_values: valuations that were compared with the oracle.
    """

    valued: int
    dead_letters: int
    lost: list[Place] = field(default_factory=list)
    doubled: list[Place] = field(default_factory=list)
    out_of_order: list[Place] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    bundles: Counter[str] = field(default_factory=Counter)
    checked_values: int = 0

    @property
    def holds(self) -> bool:
        """Whether every record has one right outcome, in order."""
        return not (self.lost or self.doubled or self.out_of_order or self.wrong)


def judge(
    sent: Iterable,
    valuations: Sequence,
    letters: Sequence,
    *,
    bundles: Mapping[str, Path],
    largest_letter: int,
    oracle_samples: int,
    seed: int,
) -> Verdict:
    """Hold the outcomes against the input; all three as kafka-python's consumer gives them.

    Args:
        sent: the input's records.
        valuations: the output's.
        letters: the dead-letter topic's.
        bundles: those that were ever loaded, by id.
        largest_letter: bytes of the longest value that the dead-letter topic takes.
        oracle_samples: how many valuations to compute again.
        seed: of their choice.
    """
    verdict = Verdict(len(valuations), len(letters))
    sources = {(record.partition, record.offset): record for record in sent}
    outcomes = Counter(_place(record) for topic in (valuations, letters) for record in topic)
    verdict.lost = sorted(sources.keys() - outcomes.keys())
    verdict.doubled = sorted(place for place, count in outcomes.items() if count > 1)
    for place in outcomes.keys() - sources.keys():
        verdict.wrong.append(f"{place}: an outcome of no record")
    for topic in (valuations, letters):
        verdict.out_of_order += _out_of_order(topic)
    checked = set(Random(seed).sample(range(len(valuations)), min(oracle_samples, len(valuations))))
    for index, record in enumerate(valuations):
        if source := sources.get(_place(record)):
            valuation = json_format.Parse(record.value, Valuation())
            verdict.bundles[valuation.bundle_id] += 1
            faults = _faults_of_valuation(record, valuation, source, bundles)
            if index in checked and not faults:
                faults = _faults_of_values(valuation, bundles)
                verdict.checked_values += 1
            verdict.wrong += [f"{_place(record)}: {fault}" for fault in faults]
    for record in letters:
        if source := sources.get(_place(record)):
            faults = _faults_of_letter(record, source, largest_letter)
            verdict.wrong += [f"{_place(record)}: {fault}" for fault in faults]
    return verdict


def _place(outcome) -> Place:
    headers = dict(outcome.headers)
    return int(headers["alinfik-source-partition"]), int(headers["alinfik-source-offset"])


def _out_of_order(topic: Sequence) -> list[Place]:
    """A partition's outcomes stand in one partition, so their offsets there say who is first."""
    latest: dict[int, tuple[int, int]] = {}
    found = []
    for record in sorted(topic, key=lambda record: (record.partition, record.offset)):
        source, offset = _place(record)
        partition, before = latest.get(source, (record.partition, -1))
        if record.partition != partition or offset < before:
            found.append((source, offset))
        latest[source] = record.partition, offset
    return found


def _faults_of_valuation(record, valuation: Valuation, source, bundles: Mapping) -> list[str]:
    faults = []
    kind = dict(source.headers)[KIND].decode()
    if kind != GOOD:
        faults.append(f"{kind} was valued")
    if valuation.sample_id.encode() != source.key or record.key != source.key:
        faults.append(f"record {source.key} has the valuation of {valuation.sample_id}")
    if record.timestamp != source.timestamp:
        faults.append("another timestamp")
    if dict(record.headers)["alinfik-bundle-id"].decode() != valuation.bundle_id:
        faults.append("header and valuation name two bundles")
    if valuation.bundle_id not in bundles:
        faults.append(f"bundle {valuation.bundle_id} was never loaded")
    return faults


def _faults_of_values(valuation: Valuation, bundles: Mapping[str, Path]) -> list[str]:
    expected, _ = expected_values(bundles[valuation.bundle_id], sample(int(valuation.sample_id)))
    found = [target.value for target in valuation.values]
    if np.allclose(found, expected, rtol=1e-5, atol=1e-5):
        return []
    return [f"values {found}, not {expected.tolist()}"]


def _faults_of_letter(record, source, largest_letter: int) -> list[str]:
    headers = dict(record.headers)
    kind = dict(source.headers)[KIND].decode()
    if kind == GOOD:
        return [f"a good record became a dead letter: {headers.get('alinfik-error')!r}"]
    faults = []
    if headers["alinfik-reason"].decode() != POISON[kind][0]:
        faults.append(f"{kind} is said to be {headers['alinfik-reason']!r}")
    left_out = source.value is not None and len(source.value) > largest_letter
    if record.value != (b"" if left_out else source.value):
        faults.append(f"{kind} is not there byte for byte")
    if headers.get(_SOURCE_BYTES) != (b"%d" % len(source.value) if left_out else None):
        faults.append(f"{kind} was left out, or was not, and its header does not say so")
    if (record.key, record.timestamp) != (source.key, source.timestamp):
        faults.append(f"{kind} has another key or timestamp")
    if list(record.headers[: len(source.headers)]) != list(source.headers):
        faults.append(f"{kind} has other headers")
    return faults

"""`alinfik dlq` on Apache Kafka: what failed is listed, shown, sent again and valued."""

import json
import signal
from typing import NamedTuple

import pytest
from kafka import KafkaProducer

from alinfik.client.__main__ import Alinfik
from alinfik.client.brokers import Brokers
from alinfik.client.dead_letter_topic import DeadLetterTopic
from alinfik.client.dead_letters import Place, Selection
from alinfik.client.resubmit import Plan, survey
from alinfik.client.resubmit import send as send_again
from alinfik.command import run
from alinfik.kafka.headers import NULL, RawName
from tests.kafka.streams import Sent, Stream, read, running, send
from tests.terminal import on_a_terminal

pytestmark = pytest.mark.kafka


class Done(NamedTuple):
    returncode: int
    stdout: bytes
    stderr: str

    @property
    def letters(self):
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def places(self):
        return [(letter["partition"], letter["offset"]) for letter in self.letters]


@pytest.fixture
def dlq(stream, capfdbinary):
    """Runs `alinfik dlq` on the stream's dead letters."""

    def dlq(command, *arguments, stream=stream):
        where = [
            f"--kafka-bootstrap={stream.broker.bootstrap}",
            f"--kafka-dead-letters={stream.dead_letters}",
        ]
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(Alinfik, ["dlq", command, *arguments, *where])
        output = capfdbinary.readouterr()
        return Done(exit_.value.code, output.out, output.err.decode())

    return dlq


def sample(completion):
    return json.dumps({"completion": completion}).encode()


def letter_headers(partition, offset):
    said = {"reason": "bad_json", "error": "not JSON", "source-topic": "samples"}
    said |= {"source-partition": str(partition), "source-offset": str(offset)}
    return [(f"alinfik-{name}", text.encode()) for name, text in said.items()]


def test_what_failed_is_listed_shown_sent_again_and_valued(
    stream, dlq, tiny_bundle, failing_bundle
):
    good, fails, broken = sample("She sold 48 clips."), sample("A text of friends."), b'{"\xff'
    trace = [("trace", b"\x00\x01"), (RawName.of(b"\xff"), b"1"), ("null", NULL)]
    send(
        stream.broker,
        stream.samples,
        [Sent(good), Sent(fails, b"f-1", trace, 1), Sent(broken, b"b-1"), Sent(good, partition=1)],
    )
    with running(stream.settings(failing_bundle)):
        read(stream.broker, stream.valuations, 2)
        letters = read(stream.broker, stream.dead_letters, 2)

    listed = dlq("list")
    assert listed.returncode == 0
    # Offsets are not always 0: a transaction that was aborted leaves its own behind.
    places = {letter.key: (letter.partition, letter.offset) for letter in letters}
    broken_at, fails_at = (f"{part}:{offset}" for part, offset in (places[b"b-1"], places[b"f-1"]))
    assert listed.places == sorted(places.values())
    by_key = {letter["key"]: letter for letter in listed.letters}
    failed = {key: value for key, value in by_key["f-1"].items() if key not in ("error", "time")}
    assert failed == {
        "partition": 1,
        "offset": places[b"f-1"][1],
        "reason": "model_failed",
        "attempt": 1,
        "key": "f-1",
        "source_topic": stream.samples,
        "source_partition": 1,
        "source_offset": 0,
        "size": len(fails),
        "value_left_out": False,
    }
    time = by_key["f-1"]["time"]
    for flags, count in {
        ("--reason", "bad_utf8", "--reason", "tombstone"): 1,
        ("--key", "f-*"): 1,
        ("--source-topic", stream.samples, "--source-partition", "2"): 0,
        ("--since", time[:10], "--until", "9999-01-01"): 2,
        ("--since", "9999-01-01"): 0,
        ("--until", time[:10]): 0,
        ("--limit", "1"): 1,
        ("--start-at", fails_at): 1,
    }.items():
        assert len(dlq("list", *flags).letters) == count, flags

    shown = dlq("show", broken_at)
    assert (shown.returncode, shown.stdout) == (0, broken)
    assert "alinfik-reason: bad_utf8\n" in shown.stderr
    assert "trace: \\x00\\x01\n" in dlq("show", fails_at).stderr
    for place, says in (
        ("0:99", "has no record at 0:99"),
        ("7:0", "has no partition 7, but 0 to 2"),
    ):
        missing = dlq("show", place)
        assert (missing.returncode, missing.stdout) == (2, b"")
        assert says in missing.stderr

    tried = dlq("resubmit", "--dry-run", "--key", "f-1")
    assert tried.places == [places[b"f-1"]]
    assert f"would resubmit: 1 to {stream.samples}\n" in tried.stderr
    nowhere = dlq("resubmit", "--yes", "--topic", "nowhere")
    assert nowhere.returncode == 2
    assert "has no topic nowhere (--topic)" in nowhere.stderr
    assert len(read(stream.broker, stream.samples)) == 4

    # The model is mended, and one of the records is as broken as before.
    done = dlq("resubmit", "--yes")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == f"resubmitted: 2 to {stream.samples}"
    with running(stream.settings(tiny_bundle)):
        valued = read(stream.broker, stream.valuations, 3)
        read(stream.broker, stream.dead_letters, 3)
    [mended] = [record for record in valued if record.key == b"f-1"]
    assert mended.timestamp == next(one.timestamp for one in letters if one.key == b"f-1")
    assert dict(mended.headers)["alinfik-source-partition"] == b"1"
    again = [letter for letter in dlq("list").letters if letter["attempt"] == 2]
    assert [(one["key"], one["reason"]) for one in again] == [("b-1", "bad_utf8")]
    [sent] = [one for one in read(stream.broker, stream.samples) if one.key == b"f-1"][1:]
    assert sent.value == fails
    names = [name.encode() for name, _ in sent.headers]
    assert names == [b"trace", b"\xff", b"null", b"alinfik-attempt"]
    assert [value for _, value in sent.headers] == [b"\x00\x01", b"1", None, b"1"]

    after = f"0:{places[b'b-1'][1] + 1}"
    refused = dlq("resubmit", "--yes", "--start-at", after, "--max-attempt", "2", "--key", "b-*")
    assert refused.returncode == 1
    assert ": not resubmitted: it was tried 2 times (--max-attempt 2)\n" in refused.stderr
    assert "resubmitted: none\n" in refused.stderr


def test_a_value_that_was_too_large_for_the_topic_is_named(kafka, dlq, tiny_bundle):
    stream = Stream(kafka, partitions=1)
    kafka.create_topic(stream.samples)
    kafka.create_topic(stream.valuations)
    kafka.create_topic(stream.dead_letters, max_message_bytes="9000")
    send(kafka, stream.samples, [Sent(b"x" * 20_000), Sent(b"x")])
    with running(stream.settings(tiny_bundle)):
        read(kafka, stream.dead_letters, 2)
    done = dlq("resubmit", "--yes", stream=stream)
    assert done.returncode == 1
    assert (
        ": not resubmitted: 20000 bytes of it were left out for their size; it stood at "
        f"{stream.samples} 0:0\n"
    ) in done.stderr
    assert f"resubmitted: 1 to {stream.samples}\n" in done.stderr
    assert [letter["size"] for letter in dlq("list", stream=stream).letters] == [20_000, 1]


def test_what_is_not_committed_is_not_listed_and_not_waited_for(stream, dlq):
    producer = KafkaProducer(
        bootstrap_servers=stream.broker.bootstrap, transactional_id=f"{stream.name}-letters"
    )
    producer.init_transactions()

    def produce(value):
        producer.begin_transaction()
        producer.send(stream.dead_letters, value, b"k", letter_headers(0, 0), partition=0).get(30)

    produce(b"aborted")
    producer.abort_transaction()
    produce(b"committed")
    producer.commit_transaction()
    produce(b"aborted too")
    producer.abort_transaction()
    committed = dlq("list")
    assert [(one["offset"], one["size"]) for one in committed.letters] == [(2, len(b"committed"))]
    produce(b"open")
    assert dlq("list").stdout == committed.stdout
    assert dlq("show", "0:0").returncode == 2
    producer.abort_transaction()
    producer.close()


class Pressed(DeadLetterTopic):
    """Ctrl-C is pressed while a letter is on its way to the producer."""

    def letters(self, selection, on_read=None):
        for number, letter in enumerate(super().letters(selection, on_read)):
            if number == 600:
                signal.raise_signal(signal.SIGINT)
            yield letter


def test_an_interrupt_says_where_to_go_on_so_that_each_is_sent_once(stream, capsys):
    count = 1_500
    send(
        stream.broker,
        stream.dead_letters,
        (
            Sent(b"%d" % n, b"k", letter_headers(n % 2, n), partition=n % stream.partitions)
            for n in range(count)
        ),
    )
    brokers = Brokers(stream.broker.bootstrap)
    plan = Plan(Selection(), stream.samples, max_attempt=3, limit=None)
    before = signal.getsignal(signal.SIGINT)
    with Pressed(brokers, stream.dead_letters) as topic:
        with pytest.raises(KeyboardInterrupt):
            send_again(brokers, topic, plan, count)
        assert signal.getsignal(signal.SIGINT) is before
    assert "resubmitted 600 of 1500 dead letters; --start-at 1:100 goes on" in (
        capsys.readouterr().err
    )
    assert len(read(stream.broker, stream.samples)) == 600
    rest = Plan(Selection(start_at=Place(1, 100)), stream.samples, max_attempt=3, limit=None)
    with DeadLetterTopic(brokers, stream.dead_letters) as topic:
        found = survey(topic, rest)
        assert (found.to.total(), found.left) == (900, 0)
        send_again(brokers, topic, rest, found.to.total())
    sent = [int(record.value) for record in read(stream.broker, stream.samples)]
    assert sorted(sent) == list(range(count))


@pytest.mark.parametrize(("answer", "sent"), [(b"n\n", 0), (b"y\n", 1)])
def test_a_terminal_is_shown_a_table_and_asked_before_anything_is_sent(stream, answer, sent):
    headers = [("alinfik-source-topic", stream.samples.encode()), ("alinfik-error", b"\x1b[2J")]
    headers = [(RawName.of(b"\xff"), b""), *letter_headers(1, 5), *headers]
    send(stream.broker, stream.dead_letters, [Sent(b"[", b"id-1", headers)])
    where = [
        f"--kafka-bootstrap={stream.broker.bootstrap}",
        f"--kafka-dead-letters={stream.dead_letters}",
    ]
    code, table = on_a_terminal("dlq", "list", *where, columns=160)
    assert code == 0
    for text in ("0:0", "bad_json", "id-1", "1 dead letters", "\\x1b[2J"):
        assert text in table
    code, asked = on_a_terminal("dlq", "resubmit", *where, answer=answer, columns=160)
    assert f"Resubmit 1 to {stream.samples}? " in asked
    assert code == (0 if sent else 1)
    assert len(read(stream.broker, stream.samples)) == sent

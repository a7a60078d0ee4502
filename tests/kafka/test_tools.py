"""The stream as the world sees it: by Kafka's own tools, kcat, our commands, and on Tansu."""

import json
import shutil
import signal
import subprocess

import pytest
from kafka import KafkaProducer

from alinfik.client.__main__ import Alinfik
from alinfik.client.kafka import ingest, watch
from alinfik.command import CommandError, FailedError, run
from alinfik.server.healthcheck import main
from alinfik.v1 import Sample
from demo.broker import Tansu, free_port
from tests.kafka.streams import Deadline, Sent, Stream, read, running, send
from tests.kafka.test_exactly_once import samples
from tests.kafka.test_faults import flags
from tests.server_process import running_server
from tests.support import skip_or_fail
from tests.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.kafka

SAMPLE = {"id": "1", "provider": "p", "prompt": "How many?", "completion": "She sold 48 clips"}


def test_kafkas_console_consumer_reads_a_valuation_and_its_headers(stream, tiny_bundle):
    send(stream.broker, stream.samples, [Sent(json.dumps(SAMPLE).encode(), key=b"k")])
    with running(stream.settings(tiny_bundle)):
        read = stream.broker.run_tool(
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            *("--bootstrap-server", stream.broker.bootstrap, "--topic", stream.valuations),
            *("--from-beginning", "--max-messages", "1", "--isolation-level", "read_committed"),
            *("--property", "print.headers=true", "--property", "print.key=true"),
        )
    assert read.returncode == 0, read.stderr
    headers, key, value = read.stdout.strip().split("\t")
    assert f"alinfik-source-topic:{stream.samples}" in headers
    assert key == "k"
    valuation = json.loads(value)
    assert valuation["sample_id"] == "1"
    assert [v["target"] for v in valuation["values"]] == ["gsm8k", "mbpp"]
    assert valuation["truncated"] is False


def test_kcat_produces_a_sample_and_reads_its_valuation(stream, tiny_bundle):
    if shutil.which("kcat") is None:
        skip_or_fail("kcat is not installed: apt-get install kcat")
    kcat = ["kcat", "-b", stream.broker.bootstrap]
    subprocess.run(
        [*kcat, "-P", "-t", stream.samples], input=json.dumps(SAMPLE).encode(), check=True
    )
    with running(stream.settings(tiny_bundle)):
        read = subprocess.run(
            [*kcat, "-C", "-t", stream.valuations, "-c", "1"],
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        )
    assert json.loads(read.stdout)["provider"] == "p"


def lag(server, stream):
    return {
        str(p): server.metric("alinfik_kafka_lag_records", topic=stream.samples, partition=str(p))
        for p in range(stream.partitions)
    }


def described(stream):
    """By partition: what Kafka's own tool calls the committed offset, and the lag."""
    ran = stream.broker.run_tool(
        "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
        *("--bootstrap-server", stream.broker.bootstrap, "--describe", "--group", stream.name),
    )
    lines = [line.split() for line in ran.stdout.splitlines() if stream.samples in line]
    return {line[2]: (line[3], line[5]) for line in lines}


def test_lag_agrees_with_kafka_consumer_groups(stream, tiny_bundle):
    send(stream.broker, stream.samples, samples(600, partitions=2))
    none = {"0": 0, "1": 0, "2": 0}
    with running(stream.settings(tiny_bundle)) as server:
        deadline = Deadline("lag of every partition")
        while (ours := lag(server, stream)) != none:
            deadline.check(str(ours))
        assert server.metric("alinfik_kafka_assigned_partitions") == stream.partitions
    assert set(lag(server, stream).values()) == {None}
    send(stream.broker, stream.samples, samples(5, partitions=1))
    assert described(stream) == {"0": ("300", "5"), "1": ("300", "0"), "2": ("0", "0")}


def test_lag_in_motion_is_at_most_one_look_behind_kafkas_own(stream, tmp_path):
    """It only falls here, so what is said before Kafka's tool starts is no less than the tool's.

    And what it says is reached while there is still something to do: the metric is late, not stuck.
    """
    # A minute's work, so that it is under way when Kafka's tool, a Java program, has looked.
    slow = write_tiny_bundle(tmp_path / "bundle", loops=200_000)
    pace = {"batch_tokens": 500, "workers": 1}
    send(stream.broker, stream.samples, samples(30_000, partitions=1))
    with running(stream.settings(slow, **pace)) as server:
        deadline = Deadline("the first transactions")
        while lag(server, stream)["0"] is None or not described(stream):
            deadline.check(str(lag(server, stream)))
        before = lag(server, stream)["0"]
        theirs = int(described(stream)["0"][1])
        assert 0 < theirs <= before
        while (ours := lag(server, stream)["0"]) > theirs:
            deadline.check(str(ours))
        assert ours > 0


def test_a_transactions_marker_is_no_lag(stream, tiny_bundle):
    """Nor are aborted records: two transactions of three records a partition end in offset 8."""
    producer = KafkaProducer(bootstrap_servers=stream.broker.bootstrap, transactional_id="t")
    producer.init_transactions()
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for sample in samples(9, stream.partitions):
            producer.send(stream.samples, sample.value, sample.key, [], sample.partition)
        producer.flush()
        end()
    producer.close()
    with running(stream.settings(tiny_bundle)) as server:
        assert len(read(stream.broker, stream.valuations, 9)) == 9
        deadline = Deadline("lag of 0")
        while (theirs := described(stream)) != dict.fromkeys("012", ("8", "0")):
            deadline.check(str(theirs))
        while set(lag(server, stream).values()) != {0}:
            deadline.check(str(lag(server, stream)))
    assert len(read(stream.broker, stream.valuations)) == 9


def test_samples_sent_are_watched_as_valuations(stream, tiny_bundle):
    sent = [Sample(id=str(i), provider="p", completion=f"She sold {i} clips") for i in range(50)]
    acknowledged = []
    count = ingest(
        iter(sent),
        bootstrap=stream.broker.bootstrap,
        topic=stream.samples,
        on_sent=acknowledged.append,
    )
    assert count == sum(acknowledged) == len(sent)
    with running(stream.settings(tiny_bundle)):
        watched = list(
            watch(
                bootstrap=stream.broker.bootstrap,
                topic=stream.valuations,
                from_beginning=True,
                count=len(sent),
            )
        )
    assert {v.sample_id for v in watched} == {sample.id for sample in sent}


@pytest.fixture
def ingest_lines(stream, tmp_path):
    """Runs `alinfik ingest` on a file of these lines."""

    def ingest_lines(lines, *arguments):
        file = tmp_path / "pool.jsonl"
        file.write_text("\n".join(lines))
        where = f"--kafka-bootstrap={stream.broker.bootstrap}", f"--topic={stream.samples}"
        with pytest.raises(SystemExit) as exit_:
            run(Alinfik, ["ingest", str(file), *where, *arguments])
        return exit_.value.code

    return ingest_lines


def test_a_broken_line_says_how_to_go_on_once_it_is_mended(stream, ingest_lines, capsys):
    lines = [json.dumps({"id": str(n), "completion": f"{n} clips"}) for n in range(43)]
    assert ingest_lines([*lines[:41], "broken", lines[42]]) == 2
    said = capsys.readouterr().err
    assert "line 42: not JSON" in said
    assert said.endswith("; 41 samples were sent; --skip 41 goes on\n")
    assert ingest_lines(lines, "--skip", "41") == 0
    assert "ingest: 2/2 in" in capsys.readouterr().err
    assert ingest_lines(lines[:5], "--skip", "41") == 2
    assert "has 5 samples, and --skip is 41" in capsys.readouterr().err
    sent = [int(record.key) for record in read(stream.broker, stream.samples)]
    assert sorted(sent) == list(range(43))


def test_an_interrupt_while_nothing_comes_is_heeded_at_once(stream, capsys):
    def samples():
        yield Sample(id="1", completion="clips")
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waited for more")

    with pytest.raises(KeyboardInterrupt):
        ingest(samples(), bootstrap=stream.broker.bootstrap, topic=stream.samples)
    assert capsys.readouterr().err == "1 samples were sent; --skip 1 goes on\n"


def test_an_interrupt_of_ingest_says_how_to_go_on(stream, capsys):
    """Ctrl-C is pressed while a sample is on its way to the producer."""

    def samples(press_at=None):
        for number in range(900):
            if number == press_at:
                signal.raise_signal(signal.SIGINT)
            yield Sample(id=str(number), completion="clips")

    where = {"bootstrap": stream.broker.bootstrap, "topic": stream.samples}
    with pytest.raises(KeyboardInterrupt):
        ingest(samples(press_at=600), **where, skip=100)
    assert capsys.readouterr().err == "500 samples were sent; --skip 600 goes on\n"
    assert ingest(samples(), **where, skip=600) == 300
    sent = [int(record.key) for record in read(stream.broker, stream.samples)]
    assert sorted(sent) == list(range(100, 900))


def test_a_missing_topic_or_broker_or_valuation_is_said_in_one_line(stream):
    there = stream.broker.bootstrap
    with pytest.raises(CommandError, match=r"has no topic nowhere .*--create --topic nowhere"):
        ingest([], bootstrap=there, topic="nowhere")
    with pytest.raises(CommandError, match="has no topic nowhere"):
        next(watch(bootstrap=there, topic="nowhere"))
    send(stream.broker, stream.samples, [Sent(b"no JSON")])
    with pytest.raises(CommandError, match="partition 0, offset 0 holds no valuation"):
        next(watch(bootstrap=there, topic=stream.samples, from_beginning=True))
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(FailedError, match=f"no Kafka broker answers at {nowhere}"):
        ingest([], bootstrap=nowhere, topic="samples")


def test_a_server_of_kafka_alone_is_ready_and_values(stream, tiny_bundle, monkeypatch, capsys):
    send(stream.broker, stream.samples, samples(3, stream.partitions))
    options = flags(stream.settings(tiny_bundle))
    with running_server(tiny_bundle, *options, "--listen", "") as server:
        assert server.grpc == "none"
        read(stream.broker, stream.valuations, 3)
        monkeypatch.setenv("ALINFIK_LISTEN", "")
        with pytest.raises(SystemExit) as healthy:
            main(["--metrics", server.metrics])
        assert (healthy.value.code, capsys.readouterr().err) == (0, "")
    with pytest.raises(SystemExit) as gone:
        main(["--metrics", server.metrics])
    assert gone.value.code == 1


def test_tansu_shows_a_stream(tiny_bundle):
    with Tansu() as broker:
        stream = Stream(broker, partitions=1).create()
        count = 20
        ingest(
            (Sample(id=str(i), completion=f"{i} clips") for i in range(count)),
            bootstrap=broker.bootstrap,
            topic=stream.samples,
        )
        with running(stream.settings(tiny_bundle)):
            valuations = watch(
                bootstrap=broker.bootstrap,
                topic=stream.valuations,
                from_beginning=True,
                count=count,
            )
            assert [v.sample_id for v in valuations] == [str(i) for i in range(count)]

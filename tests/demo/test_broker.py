"""Which broker a machine gets, and what is said when it does not come."""

import pytest

from demo.broker import ApacheKafka, BrokerError, start_broker
from demo.kafka_jars import JarsMissingError
from tests.support import skip_or_fail


def test_without_java_tansu_stands_in_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with start_broker() as broker:
        broker.create_topic("samples", partitions=2)
        with broker.admin() as admin:
            assert admin.list_topics() == ["samples"]
    assert broker.description.startswith("Tansu, in memory (no java found: install Java 17")
    assert not broker.directory.exists()


@pytest.mark.kafka
def test_a_broker_that_fails_shows_the_end_of_its_log():
    try:
        broker = ApacheKafka({"num.network.threads": "-1"})
    except JarsMissingError as missing:
        skip_or_fail(str(missing))
    with pytest.raises(BrokerError, match=r"num\.network\.threads"), broker:
        pass
    assert not broker.directory.exists()

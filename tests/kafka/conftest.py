import pytest

from demo.broker import ApacheKafka
from demo.kafka_jars import JarsMissingError
from tests.kafka.streams import Stream
from tests.support import skip_or_fail
from tests.tiny_bundle import write_tiny_bundle


def apache_kafka():
    try:
        return ApacheKafka()
    except JarsMissingError as missing:
        skip_or_fail(str(missing))


@pytest.fixture(scope="session")
def kafka():
    with apache_kafka() as broker:
        yield broker


@pytest.fixture
def stream(kafka):
    return Stream(kafka).create()


@pytest.fixture(scope="session")
def failing_bundle(tmp_path_factory):
    """A bundle whose model fails on the word `friends`."""
    return write_tiny_bundle(tmp_path_factory.mktemp("failing") / "bundle", fails_on_friends=True)

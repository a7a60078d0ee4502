import pytest
from kafka.errors import InvalidProducerEpochError, KafkaError, ProducerFencedError

from alinfik.server.kafka_session import _describe


@pytest.mark.parametrize(
    "error",
    [
        ProducerFencedError(),
        InvalidProducerEpochError(),
        KafkaError(f"cannot commit: {ProducerFencedError()}"),
    ],
)
def test_a_fenced_producer_is_told_by_the_setting_that_mends_it(error: KafkaError) -> None:
    assert "has this --kafka-instance" in _describe(error)


def test_other_errors_speak_for_themselves() -> None:
    assert _describe(KafkaError("no such broker")) == str(KafkaError("no such broker"))

from pathlib import Path

import pytest
import trustme
from pydantic import ValidationError

from alinfik.command import CommandError
from alinfik.server.kafka_security import connection
from alinfik.server.settings import ServerSettings
from tests.server.certificates import write_authority, write_pair


def settings(**others: object) -> ServerSettings:
    return ServerSettings(bundle=Path("b"), kafka_bootstrap="one:1,two:2", **others)


@pytest.mark.parametrize(
    ("others", "error"),
    [
        ({"kafka_security_protocol": "SASL_SSL"}, "SASL_SSL needs --kafka-username"),
        ({"kafka_username": "u"}, "--kafka-username needs --kafka-security-protocol"),
        ({"kafka_tls_ca": "ca.pem"}, "need --kafka-security-protocol SSL"),
        ({"kafka_tls_key": "k", "kafka_security_protocol": "SSL"}, "go together"),
    ],
)
def test_half_a_security_is_refused(others: dict[str, str], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        settings(**others)


def test_a_password_is_its_file_without_the_line_feed(tmp_path: Path) -> None:
    password = tmp_path / "password"
    sasl = settings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_username="u",
        kafka_password_file=password,
    )
    with pytest.raises(CommandError, match=r"--kafka-password-file .*No such file"):
        connection(sasl)
    password.write_text("\n")
    with pytest.raises(CommandError, match="is empty"):
        connection(sasl)
    password.write_text(" with spaces \n")
    assert connection(sasl)["sasl_plain_password"] == " with spaces "  # noqa: S105 - nobody's
    assert connection(sasl)["bootstrap_servers"] == ["one:1", "two:2"]


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = write_authority(tmp_path, "ca", authority)
    pair, other = (write_pair(tmp_path, name, authority) for name in "ab")
    tls = {"kafka_security_protocol": "SSL", "kafka_tls_ca": ca}
    with pytest.raises(CommandError, match="--kafka-tls-ca "):
        connection(settings(kafka_security_protocol="SSL", kafka_tls_ca=pair.key))
    with pytest.raises(CommandError, match=r"--kafka-tls-certificate .*b\.key"):
        connection(settings(kafka_tls_certificate=pair.certificate, kafka_tls_key=other.key, **tls))
    assert "ssl_context" in connection(
        settings(kafka_tls_certificate=pair.certificate, kafka_tls_key=pair.key, **tls)
    )

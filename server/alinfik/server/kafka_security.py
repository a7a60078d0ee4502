"""How the pipeline proves who it is to the brokers, and they to it.

Comes in: settings. Goes out: what every Kafka client of ours is told about its connections, read
from the files as they are now, so that a client that connects anew has the new password; and why
none came about. Knows nothing of what is said over a connection.
"""

import logging
import re
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alinfik.command import CommandError
from alinfik.server.settings import ServerSettings


def connection(settings: ServerSettings) -> dict[str, Any]:
    """Brokers, protocol and credentials, under kafka-python's names.

    Raises:
        CommandError: a file cannot be read, or does not hold what it should.
    """
    protocol = settings.kafka_security_protocol
    said: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap.split(","),
        "security_protocol": protocol,
    }
    if protocol.startswith("SASL") and settings.kafka_password_file:
        said |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_username,
            "sasl_plain_password": _password(settings.kafka_password_file),
        }
    if protocol.endswith("SSL"):
        said["ssl_context"] = _tls(settings)
    return said


class Overheard(logging.Handler):
    """Why connections fail, where a user can mend it: a password, TLS, or the wrong protocol.

    kafka-python tells its log, and its caller no more than that the time was up.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it; a few lines a try."""
        self._said += f"{record.getMessage()}\n"

    def why(self, settings: ServerSettings) -> str:
        """One line: which brokers, and what to mend."""
        brokers, protocol = settings.kafka_bootstrap, settings.kafka_security_protocol
        if fault := re.search(r"Handshake failed: (.*)", self._said):
            return (
                f"{brokers} and we do not agree on TLS; see --kafka-security-protocol and "
                f"--kafka-tls-ca ({fault[1]})"
            )
        # A broker that refuses a password hangs up, often before its answer is read.
        if "Authentication failed" in self._said or "socket disconnected" in self._said:
            if protocol.startswith("SASL"):
                return (
                    f"{brokers} refuses --kafka-username {settings.kafka_username}: see "
                    "--kafka-password-file, --kafka-sasl-mechanism and "
                    "--kafka-security-protocol"
                )
            return f"{brokers} hangs up: does it speak --kafka-security-protocol {protocol}?"
        return f"no broker answers at {brokers}"


@contextmanager
def overhear() -> Generator[Overheard]:
    """Listen to the log of kafka-python's connections, and let nobody else hear it."""
    log, ear = logging.getLogger("kafka.net"), Overheard()
    before = log.level, log.propagate
    log.addHandler(ear)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield ear
    finally:
        log.removeHandler(ear)
        log.setLevel(before[0])
        log.propagate = before[1]


def _tls(settings: ServerSettings) -> ssl.SSLContext:
    authority, certificate = settings.kafka_tls_ca, settings.kafka_tls_certificate
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise CommandError(
            f"--kafka-tls-ca {authority}: no certificates in PEM form are there ({error.strerror})"
        ) from error
    if certificate:
        key = settings.kafka_tls_key
        try:
            # The password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise CommandError(
                f"--kafka-tls-certificate {certificate} and --kafka-tls-key {key} are no PEM files "
                f"of a certificate and its key without a password ({error.strerror})"
            ) from error
    return context


def _password(path: Path) -> str:
    flag = "--kafka-password-file"
    try:
        # Editors end a file with a line feed, which no password has.
        password = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{flag} {path}: cannot be read ({error})") from error
    if not password:
        raise CommandError(f"{flag} {path}: is empty; write the password there, and nothing else")
    return password

"""The options of every sub-command that talks to Kafka: where the brokers are, how to get in.

In: flags, environment, file. Out: what kafka-python is told. Knows nothing of topics and records.
The flags are those of ``alinfik-server``.
"""

import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings

from alinfik.client.brokers import Brokers
from alinfik.client.connection import SETTINGS, host_and_port
from alinfik.command import CommandError


def _bootstrap(addresses: str) -> str:
    return ",".join(host_and_port(address.strip()) for address in addresses.split(","))


class KafkaConnection(BaseSettings):
    """Where the brokers are, whom to trust, and who asks."""

    model_config = SETTINGS

    kafka_bootstrap: Annotated[str, AfterValidator(_bootstrap)] = Field(
        default="127.0.0.1:9092", description="HOST:PORT of Kafka brokers, comma-separated."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="As the brokers' listener has it: SSL encrypts, SASL asks who you are.",
    )
    kafka_sasl_mechanism: Literal["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"] = Field(
        default="SCRAM-SHA-512",
        description="How SASL proves the password; PLAIN sends it as it is: with SASL_SSL alone.",
    )
    kafka_username: str | None = Field(default=None, description="Name that SASL gives.")
    kafka_password_file: Path | None = Field(
        default=None, description="File with that name's password."
    )
    kafka_tls_ca: Path | None = Field(
        default=None,
        description="PEM file of the authorities that may vouch for the brokers; give it where "
        "their certificates are by your own. The public ones by default.",
    )
    kafka_tls_certificate: Path | None = Field(
        default=None, description="PEM file of your certificate, where the brokers ask for one."
    )
    kafka_tls_key: Path | None = Field(
        default=None, description="PEM file of that certificate's private key."
    )

    def brokers(self) -> Brokers:
        """Read the files that the options name.

        Raises:
            CommandError: the options do not fit together, or a file cannot be read.
        """
        self._check()
        options: dict[str, object] = {"security_protocol": self.kafka_security_protocol}
        if self._sasl():
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_username,
                "sasl_plain_password": self._password(),
            }
        if self._tls():
            options["ssl_context"] = self._context()
        return Brokers(self.kafka_bootstrap, options)

    def _check(self) -> None:
        """An option that would do nothing is refused: it may be all that was to protect a name."""
        protocol = f"--kafka-security-protocol {self.kafka_security_protocol}"
        sasl = {
            "--kafka-username": self.kafka_username,
            "--kafka-password-file": self.kafka_password_file,
        }
        tls = {
            "--kafka-tls-ca": self.kafka_tls_ca,
            "--kafka-tls-certificate": self.kafka_tls_certificate,
            "--kafka-tls-key": self.kafka_tls_key,
        }
        for name, value in sasl.items():
            if self._sasl() and value is None:
                raise CommandError(f"{protocol} needs {name}")
            if not self._sasl() and value is not None:
                raise CommandError(f"{name} is not used with {protocol}: SASL_SSL uses it")
        for name, value in tls.items():
            if not self._tls() and value is not None:
                raise CommandError(f"{name} is not used with {protocol}: SSL and SASL_SSL use it")
        if (self.kafka_tls_certificate is None) != (self.kafka_tls_key is None):
            raise CommandError("give --kafka-tls-certificate and --kafka-tls-key together")

    def _sasl(self) -> bool:
        return self.kafka_security_protocol.startswith("SASL")

    def _tls(self) -> bool:
        return self.kafka_security_protocol.endswith("SSL")

    def _password(self) -> str:
        assert self.kafka_password_file is not None  # noqa: S101 (checked before)
        try:
            return self.kafka_password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(
                f"--kafka-password-file {self.kafka_password_file} cannot be read ({error})"
            ) from error

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.kafka_tls_ca)
        except OSError as error:  # which ssl's own errors are
            raise CommandError(
                f"--kafka-tls-ca {self.kafka_tls_ca} is no PEM file that can be read ({error})"
            ) from error
        if self.kafka_tls_certificate is not None:
            try:
                context.load_cert_chain(self.kafka_tls_certificate, self.kafka_tls_key)
            except OSError as error:
                raise CommandError(
                    f"--kafka-tls-certificate {self.kafka_tls_certificate} and --kafka-tls-key "
                    f"{self.kafka_tls_key} are no PEM files of one certificate ({error})"
                ) from error
        return context

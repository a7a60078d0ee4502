"""`python -m alinfik.server.healthcheck`: is the server on this machine ready?

In: the server's own settings of where it listens and with which certificate. Out: exit code 0
where it is SERVING by the gRPC health protocol, or by its metrics where it has no gRPC, else 1 and
one line. For container engines, which can run a command and no more.
"""

from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from pydantic import Field, PositiveFloat, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from alinfik.command import FailedError, run
from alinfik.server.address import join_address, parse_address
from alinfik.server.settings import Address, AddressOrNone
from alinfik.server.tls import read_pem

# Addresses that mean every interface to a server, and nothing to a client.
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens here


class HealthCheck(BaseSettings):
    """Exit with 0 if the server on this machine is ready. No token is needed."""

    model_config = SettingsConfigDict(
        env_prefix="ALINFIK_",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_prog_name="alinfik.server.healthcheck",
        # The file that --config names is the server's.
        extra="ignore",
    )

    listen: AddressOrNone = Field(
        "127.0.0.1:50051",
        description="HOST:PORT that the server listens on. Empty, as the server's own: it has no "
        "gRPC, and its --metrics are asked.",
    )
    metrics: Address = Field("127.0.0.1:9464", description="HOST:PORT of the server's metrics.")
    tls_certificate: Path | None = Field(
        None, description="PEM file of the server's certificate, where it has one: it is trusted."
    )
    health_ca: Path | None = Field(
        None,
        description="PEM file of the CA to trust instead. Only for a server on another machine, "
        "whose certificate is not at hand.",
    )
    health_name: str = Field(
        "", description="A name in that certificate; needed where the address is not in it."
    )
    health_certificate: Path | None = Field(
        None,
        description="PEM file of a client certificate, for a server with --tls-client-ca.",
    )
    health_key: Path | None = Field(None, description="PEM file of its private key.")
    health_timeout_seconds: PositiveFloat = Field(
        5.0, description="Time to wait for the answer; under the container engine's own."
    )

    @model_validator(mode="after")
    def _certificate_has_key(self) -> Self:
        if (self.health_certificate is None) != (self.health_key is None):
            raise ValueError("--health-certificate and --health-key go together")
        return self

    def cli_cmd(self) -> None:
        """Ask once."""
        if not self.listen:
            self._ask_metrics()
            return
        address = _reachable(self.listen)
        with self._channel(address) as channel:
            # By hand: the library's stub has no types.
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            try:
                answer = check(HealthCheckRequest(), timeout=self.health_timeout_seconds)
            except grpc.RpcError as error:
                reason = error.details() if isinstance(error, grpc.Call) else error
                raise FailedError(f"{address} does not answer: {reason}") from error
        if answer.status != HealthCheckResponse.SERVING:
            status = HealthCheckResponse.ServingStatus.Name(answer.status)
            raise FailedError(f"{address} is {status}")

    def _ask_metrics(self) -> None:
        address = _reachable(self.metrics)
        asked = HTTPConnection(address, timeout=self.health_timeout_seconds)
        try:
            asked.request("GET", "/metrics")
            lines = asked.getresponse().read().decode().splitlines()
        except (OSError, HTTPException) as error:
            raise FailedError(f"{address} does not answer: {error}") from error
        finally:
            asked.close()
        if "alinfik_ready 1.0" not in lines:
            raise FailedError(f"{address} is not ready")

    def _channel(self, address: str) -> grpc.Channel:
        trusted = self.health_ca or self.tls_certificate
        if trusted is None:
            return grpc.insecure_channel(address)
        flag = "--health-ca" if self.health_ca else "--tls-certificate"
        credentials = grpc.ssl_channel_credentials(
            read_pem(trusted, flag),
            self.health_key and read_pem(self.health_key, "--health-key"),
            self.health_certificate and read_pem(self.health_certificate, "--health-certificate"),
        )
        name = [("grpc.ssl_target_name_override", self.health_name)] if self.health_name else []
        return grpc.secure_channel(address, credentials, name)


def _reachable(address: str) -> str:
    """The address for a client, of one to listen on."""
    host, port = parse_address(address)
    return join_address(_EVERY_INTERFACE.get(host, host), port)


if __name__ == "__main__":
    run(HealthCheck)

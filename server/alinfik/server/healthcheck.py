"""`python -m alinfik.server.healthcheck`: is the server on this machine ready?

In: the server's own setting of where it listens. Out: exit code 0 where it is SERVING by the gRPC
health protocol, else 1 and one line. For container engines, which can run a command and no more.
"""

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from pydantic import Field, PositiveFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

from alinfik.command import FailedError, run
from alinfik.server.address import join_address, parse_address
from alinfik.server.settings import Address

# Addresses that mean every interface to a server, and nothing to a client.
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing listens here


class HealthCheck(BaseSettings):
    """Exit with 0 if the server on this machine is ready."""

    model_config = SettingsConfigDict(
        env_prefix="ALINFIK_", cli_kebab_case=True, cli_prog_name="alinfik.server.healthcheck"
    )

    listen: Address = Field("127.0.0.1:50051", description="HOST:PORT that the server listens on.")
    health_timeout_seconds: PositiveFloat = Field(
        5.0, description="Time to wait for the answer; under the container engine's own."
    )

    def cli_cmd(self) -> None:
        """Ask once."""
        host, port = parse_address(self.listen)
        address = join_address(_EVERY_INTERFACE.get(host, host), port)
        with grpc.insecure_channel(address) as channel:
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


if __name__ == "__main__":
    run(HealthCheck)

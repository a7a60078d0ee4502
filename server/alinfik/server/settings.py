"""Every setting of the server: its default, its unit, and when to change it.

Comes in: flags, environment (``ALINFIK_…``) and a TOML file. Goes out: one validated object, read
by every other module. Knows nothing of what the settings do.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_settings import BaseSettings, CliImplicitFlag, SettingsConfigDict

from alinfik.server.bundle import Precision
from alinfik.server.device import Device
from alinfik.server.setting_types import Address, AddressOrNone, Collector, Paths

OffsetReset = Literal["earliest", "latest", "fail"]


class ServerSettings(BaseSettings):
    """Value training text over gRPC and, where a broker is named, over Kafka.

    --config FILE.toml and ALINFIK_… in the environment set any option too; flags win over both.
    """

    model_config = SettingsConfigDict(
        env_prefix="ALINFIK_",
        cli_prog_name="alinfik-server",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    bundle: Paths = Field(
        description="Directory that `alinfik-distill train` wrote: the proxy to serve. Repeatable, "
        "or with commas between: the first one values requests that name no bundle."
    )
    shadow: Path | None = Field(
        None,
        description="Directory of a bundle that values those requests too and is only compared: "
        "see alinfik_shadow_percentile_difference. It costs as much again as the first.",
    )
    bundle_root: Path | None = Field(
        None,
        description="Directory under which administrators may load bundles while the server runs.",
    )
    watch_seconds: NonNegativeFloat = Field(
        0.0,
        description="Look under --bundle-root this often, and serve the newest bundle there in "
        "place of the first one; the one before it stays loaded, for callers that name it. 0 is "
        "never. Set it where bundles are delivered as files.",
    )

    listen: AddressOrNone = Field(
        "127.0.0.1:50051",
        description="HOST:PORT for gRPC; port 0 takes a free one. 0.0.0.0 opens it to the network, "
        "for which --tls-certificate or --tokens is needed, or --allow-insecure. Empty: Kafka "
        "alone.",
    )
    metrics: Address = Field(
        "127.0.0.1:9464",
        description="HOST:PORT for Prometheus to scrape at /metrics. Change it when Prometheus "
        "runs on another machine.",
    )

    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the server's certificate, those between it and the CA after it: "
        "gRPC is then encrypted. It and the two below are read again when they change.",
    )
    tls_key: Path | None = Field(
        None, description="PEM file of the certificate's private key, not encrypted."
    )
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of CAs. Only clients with a certificate of one of them may connect.",
    )
    tokens: Path | None = Field(
        None,
        description="File of hashed tokens, as `alinfik-server token` prints its lines. Callers "
        "then need one; without, anyone who reaches the port may have samples valued.",
    )
    open_admin: CliImplicitFlag[bool] = Field(
        False,
        description="Let anyone who reaches the port load and switch bundles, where there are no "
        "--tokens. For a machine of one's own, or with --tls-client-ca.",
    )
    allow_insecure: CliImplicitFlag[bool] = Field(
        False,
        description="Listen beyond this machine with neither TLS nor tokens. Behind a proxy that "
        "has both, or in a container whose port is published on loopback.",
    )

    kafka_bootstrap: str = Field(
        "", description="HOST:PORT of Kafka brokers, comma-separated. Empty: gRPC alone."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description="What the brokers' listener speaks. SSL is TLS; SASL is a user and a password.",
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512",
        description="How the password is shown. PLAIN sends it as it is: over TLS alone.",
    )
    kafka_username: str = Field("", description="User name at the brokers, for SASL.")
    kafka_password_file: Path | None = Field(
        None,
        description="File that holds the user's password and nothing else. It and the PEM files "
        "below are read again whenever the server connects anew.",
    )
    kafka_tls_ca: Path | None = Field(
        None,
        description="PEM file of the CAs that brokers' certificates may be of; by default those "
        "that this machine trusts.",
    )
    kafka_tls_certificate: Path | None = Field(
        None,
        description="PEM file of our certificate, for brokers that ask clients for one.",
    )
    kafka_tls_key: Path | None = Field(
        None, description="PEM file of its private key, not encrypted."
    )
    kafka_input: str = Field("samples", description="Topic that samples are read from.")
    kafka_output: str = Field("valuations", description="Topic that valuations are written to.")
    kafka_dead_letters: str = Field(
        "samples.dlq", description="Topic for records that cannot be valued, byte for byte."
    )
    kafka_group: str = Field(
        "alinfik",
        description="Consumer group. Servers of one group share the input's partitions; give "
        "another name to value the same input a second time.",
    )
    kafka_instance: str = Field(
        "",
        description="Name of this server within its group; drawn at random when empty. Give it one "
        "that outlives restarts, such as the pod's, and a killed server takes up its partitions "
        "and ends its open transaction as soon as it is back, instead of holding up readers for "
        "up to 20 s. Two must not share one.",
    )
    kafka_offset_reset: OffsetReset = Field(
        "earliest",
        description="Where a partition begins of which the group has no offset, or one that the "
        "broker has deleted. latest skips what is there, and counts it; fail values nothing until "
        "a person has set an offset.",
    )
    kafka_create_topics: CliImplicitFlag[bool] = Field(
        False,
        description="Create those of the three topics that are missing, with the settings below. "
        "For a broker of one's own: elsewhere topics are somebody's to plan.",
    )
    kafka_partitions: PositiveInt = Field(
        6,
        description="Partitions of topics that are created: the most servers that share the work.",
    )
    kafka_replication_factor: Annotated[int, Field(ge=-1, le=32_767)] = Field(
        -1,
        description="Brokers that keep a copy of topics that are created; -1 is the brokers' own "
        "default.",
    )
    kafka_batch_records: PositiveInt = Field(
        5000,
        description="Most records of one commit. Batches are smaller where the model is slow, so "
        "that one takes about half a second. Lower it where records are large.",
    )

    kafka_delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="exactly_once commits values and offsets in one transaction. at_least_once "
        "saves its round trips, and values some samples twice after a failure or a rebalance: for "
        "readers that drop what they have seen, and brokers without transactions.",
    )
    kafka_valuation_format: Literal["json", "protobuf"] = Field(
        "json",
        description="Form of valuations. protobuf is a third of the bytes, and needs readers that "
        "have the message's definition.",
    )

    precision: Literal["auto", "float32", "int8"] = Field(
        "auto",
        description="Which of the bundle's models to run. auto is int8 on a CPU where the bundle "
        "has it, which is quicker and ranks samples alike, and float32 elsewhere.",
    )

    workers: PositiveInt | None = Field(
        None,
        description="Batches that run in the model at once. By default what is quickest on this "
        "machine, which is measured at the start; set it to start a second sooner.",
    )
    threads_per_worker: PositiveInt | None = Field(
        None,
        description="CPU threads of one batch; by default the cores divided by the workers. Lower "
        "it to leave cores to other programs.",
    )
    batch_tokens: PositiveInt | None = Field(
        None,
        description="Most tokens of one batch, padding included. By default what is quickest on "
        "this machine, which is measured at the start; larger ones raise latency.",
    )
    queue_samples: PositiveInt = Field(
        4096,
        description="Most samples that wait, for interactive calls and for streams each. When "
        "full, and until a sixteenth is free again, Score fails with RESOURCE_EXHAUSTED; streams "
        "wait. Lower it to shorten the wait.",
    )
    queue_tokens: PositiveInt = Field(
        524_288,
        description="Most tokens that wait, for interactive calls and for streams each. A Score "
        "that has more by itself is told to split: raise it together with "
        "--max-samples-per-request, for bundles of long texts.",
    )

    queue_seconds: PositiveFloat = Field(
        5.0,
        description="Longest wait that a Score may expect when it arrives; past it, it fails with "
        "RESOURCE_EXHAUSTED. Lower it where callers give up sooner; streams wait however long.",
    )
    pending_seconds: PositiveInt = Field(
        10,
        description="Longest time, in whole seconds, that a call waits until the server comes to "
        "it at all; past it gRPC lets it go as CANCELLED. That takes more small calls than the "
        "event loop bears: lower it to have them know sooner, unless a thousand come at once.",
    )

    cache_samples: NonNegativeInt = Field(
        16_384,
        description="Texts whose estimates are kept in memory, 0.3 kB each, and given "
        "again without the model; 0 keeps none. Raise it where providers send the same texts "
        "again.",
    )

    max_samples_per_request: PositiveInt = Field(
        1024, description="Most samples of one request. Raise it together with --max-message-bytes."
    )
    max_request_bytes: PositiveInt = Field(
        8 * 1024 * 1024,
        description="Most bytes of one request's message. Past it the caller is told to split the "
        "request, as long as the message is not too large to be read at all.",
    )
    max_message_bytes: PositiveInt = Field(
        16 * 1024 * 1024,
        description="Largest gRPC message that is read, in bytes. Raise it together with "
        "--max-request-bytes.",
    )
    max_calls: PositiveInt = Field(
        2048,
        description="Most calls under way at once, streams among them; further ones fail with "
        "RESOURCE_EXHAUSTED. Times twice --max-message-bytes, for bytes and what is parsed of "
        "them, and for streams twice that, it bounds the memory that requests take.",
    )
    max_streams: PositiveInt = Field(
        1024,
        description="Most ScoreStreams open at once; further ones fail with RESOURCE_EXHAUSTED. "
        "Each holds up to --stream-samples, or --max-request-bytes.",
    )
    max_explains: PositiveInt = Field(
        16,
        description="Most Explains under way at once, which one thread a bundle answers by turns; "
        "further ones fail with RESOURCE_EXHAUSTED.",
    )
    max_explained_samples: PositiveInt = Field(
        64, description="Most samples of one Explain, which takes them one by one."
    )
    max_connection_seconds: PositiveFloat = Field(
        1800.0,
        description="Age at which a client is asked to connect anew, a tenth more or less, so that "
        "a replica that was added gets its share. What is under way on the old connection ends "
        "there, however long it takes. Lower it where replicas come and go.",
    )
    stream_samples: PositiveInt = Field(
        512,
        description="Most samples of one ScoreStream that are read and not yet answered. Past it "
        "the stream is not read, so a client that reads slowly is throttled. Raise it when one "
        "stream should fill a large GPU.",
    )

    drain_delay_seconds: NonNegativeFloat = Field(
        0.0,
        description="Time after SIGTERM in which the server says NOT_SERVING and takes requests "
        "still. Set it to what a load balancer needs to send them elsewhere: 5 s in Kubernetes.",
    )
    drain_seconds: NonNegativeFloat = Field(
        20.0,
        description="Time for work in flight to end after SIGTERM. Keep it under the time that the "
        "supervisor waits before it kills (30 s in Kubernetes).",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of log lines; auto is console on a terminal and json elsewhere."
    )
    traces: Collector = Field(
        "",
        description="URL of an OpenTelemetry collector that takes OTLP over gRPC, such as "
        "http://127.0.0.1:4317; https encrypts. Empty: no traces. Needs 'alinfik[traces]'.",
    )
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0,
        description="Share of the traces that begin here which are kept; a caller that sends its "
        "own trace has decided for itself. Lower it where there are hundreds of requests a second.",
    )

    @model_validator(mode="after")
    def _has_a_door(self) -> Self:
        if not self.listen and not self.kafka_bootstrap:
            raise ValueError("neither --listen nor --kafka-bootstrap: nobody could send a sample")
        return self

    @model_validator(mode="after")
    def _topics_are_three(self) -> Self:
        topics = self.kafka_input, self.kafka_output, self.kafka_dead_letters
        if self.kafka_bootstrap and len(set(topics)) < len(topics):
            raise ValueError(
                "--kafka-input, --kafka-output and --kafka-dead-letters must be three topics: the "
                "server would read what it has written, again and again"
            )
        return self

    @model_validator(mode="after")
    def _watch_has_root(self) -> Self:
        if self.watch_seconds and self.bundle_root is None:
            raise ValueError("--watch-seconds needs a --bundle-root to watch")
        if self.bundle_root is not None and not self.bundle_root.is_dir():
            raise ValueError(f"--bundle-root {self.bundle_root} is no directory")
        return self

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_samples_per_request > self.queue_samples:
            raise ValueError(
                f"--max-samples-per-request {self.max_samples_per_request} is more than "
                f"--queue-samples {self.queue_samples}: no such request could ever be queued"
            )
        return self

    @model_validator(mode="after")
    def _request_fits_message(self) -> Self:
        if self.max_request_bytes > self.max_message_bytes:
            raise ValueError(
                f"--max-request-bytes {self.max_request_bytes} is more than "
                f"--max-message-bytes {self.max_message_bytes}: no such request could ever be read"
            )
        return self

    @model_validator(mode="after")
    def _security_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together: give both, or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key beside it")
        if self.open_admin and self.tokens:
            raise ValueError(
                "--open-admin is for servers without --tokens; with them, give a token the role "
                "admin"
            )
        return self

    @model_validator(mode="after")
    def _kafka_security_is_whole(self) -> Self:
        protocol = self.kafka_security_protocol
        whole_user = bool(self.kafka_username) and self.kafka_password_file is not None
        if protocol.startswith("SASL") and not whole_user:
            raise ValueError(
                f"--kafka-security-protocol {protocol} needs --kafka-username and "
                "--kafka-password-file"
            )
        if self.kafka_username and not protocol.startswith("SASL"):
            raise ValueError(
                "--kafka-username needs --kafka-security-protocol SASL_SSL, or SASL_PLAINTEXT "
                "where the network is one's own"
            )
        if (self.kafka_tls_certificate is None) != (self.kafka_tls_key is None):
            raise ValueError(
                "--kafka-tls-certificate and --kafka-tls-key go together: give both, or neither"
            )
        if (self.kafka_tls_ca or self.kafka_tls_certificate) and not protocol.endswith("SSL"):
            raise ValueError(
                "--kafka-tls-ca and --kafka-tls-certificate need --kafka-security-protocol SSL or "
                "SASL_SSL"
            )
        return self

    def precision_on(self, device: Device, *, quantised: bool) -> Precision:
        """The precision to run in on a device, with a bundle that is quantised or not."""
        if self.precision != "auto":
            return self.precision
        return "int8" if quantised and device == "cpu" else "float32"

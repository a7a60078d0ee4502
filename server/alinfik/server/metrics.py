"""Every metric of the server, in one place.

Names carry their base unit; labels are bounded by the configuration (targets, partitions) or by an
enumeration, never by what a caller sends.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from alinfik.server.distribution import Distribution

# From a bag proxy's batch on a warm cache to a request that waited out a long queue.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_PERCENT = tuple(range(10, 101, 10))
_POINTS = (1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """The server's metrics, registered with one registry.

    Args:
        registry: where ``/metrics`` reads; a fresh one for each server, so that tests do not share.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        self.ready = Gauge(
            "alinfik_ready",
            "1 while samples are taken (gRPC health: SERVING); 0 while starting and draining.",
            registry=registry,
        )

        # gRPC
        self.requests = Counter(
            "alinfik_requests", "gRPC calls ended.", ["method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "alinfik_request_seconds",
            "Time from a valid Score, or a stream's request, to its answer.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.limit = Gauge(
            "alinfik_limit", "What each bound is set to.", ["limit"], registry=registry
        )
        self.refused = Counter(
            "alinfik_refused",
            "Requests, calls and streams turned away, by the bound that they were past.",
            ["limit"],
            registry=registry,
        )

        # Engine
        self.samples = Counter(
            "alinfik_samples",
            "Samples by front door (grpc, kafka) and outcome: valued; rejected, the sample's "
            "fault; refused, no room, but not those of a call that is refused before it is read; "
            "dropped, the deadline passed or the caller left; failed, the server's fault. One from "
            "Kafka that is not valued is tried and counted again.",
            ["source", "outcome"],
            registry=registry,
        )
        self.start_samples("grpc")
        self.shared = Counter(
            "alinfik_shared_samples",
            "Samples answered from the cache, or by a sample of the same text in flight.",
            registry=registry,
        )
        self.queue_samples = Gauge(
            "alinfik_queue_samples", "Samples admitted and not yet in a batch.", registry=registry
        )
        self.queue_tokens = Gauge(
            "alinfik_queue_tokens", "Tokens of the samples in the queue.", registry=registry
        )
        self.queue_wait_seconds = Distribution(
            "alinfik_queue_wait_seconds",
            "Time a sample waited for its batch.",
            ["priority"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokenise_seconds = Histogram(
            "alinfik_tokenise_seconds",
            "Time of one run of the tokenizer, over all the calls that were gathered for it.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.workers_busy = Gauge(
            "alinfik_workers_busy",
            "Workers that have a batch in the model; all of them, all the time, is saturation.",
            registry=registry,
        )
        self.inference_seconds = Histogram(
            "alinfik_inference_seconds",
            "Time of one batch in ONNX Runtime.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_samples = Histogram(
            "alinfik_batch_samples", "Samples a batch.", buckets=_SAMPLES, registry=registry
        )
        self.batch_tokens = Histogram(
            "alinfik_batch_tokens",
            "Tokens a batch, padding included.",
            buckets=_TOKENS,
            registry=registry,
        )
        self.padding_tokens = Counter(
            "alinfik_padding_tokens", "Tokens of batches that were padding.", registry=registry
        )

        # Values
        self.value = Distribution(
            "alinfik_value",
            "Values given, in the bundle's unit: count and sum. Values may be negative, so a sum "
            "may fall: take its delta, not its rate.",
            ["target"],
            registry=registry,
        )
        self.value_percentile = Distribution(
            "alinfik_value_percentile",
            "Values given, as percentiles of the labelled pool: flat where the stream is like it.",
            ["target"],
            buckets=_PERCENT,
            registry=registry,
        )
        self.out_of_distribution = Counter(
            "alinfik_out_of_distribution_samples",
            "Samples past the bundle's out-of-distribution threshold.",
            registry=registry,
        )
        self.truncated = Counter(
            "alinfik_truncated_samples",
            "Samples longer than the bundle's token limit.",
            registry=registry,
        )

        # Bundles
        self.bundle = Gauge(
            "alinfik_bundle_info",
            "1 for each loaded bundle, by what it does (active, shadow, loaded).",
            ["bundle_id", "backbone", "role"],
            registry=registry,
        )
        self.shadow_samples = Counter(
            "alinfik_shadow_samples",
            "Samples for the shadow bundle by outcome (compared, dropped, failed).",
            ["outcome"],
            registry=registry,
        )
        self.shadow_difference = Histogram(
            "alinfik_shadow_percentile_difference",
            "Percentile points between the active bundle's value and the shadow's.",
            ["target"],
            buckets=_POINTS,
            registry=registry,
        )

    def start_samples(self, source: str) -> None:
        """Have a door's series before its first sample: a rate needs a value before a count."""
        for outcome in ("valued", "rejected", "failed"):
            self.samples.labels(source, outcome)


class KafkaMetrics:
    """The pipeline's metrics; a server that is given no broker has none of them.

    Args:
        metrics: the server's, beside which they are registered.
    """

    def __init__(self, metrics: Metrics) -> None:
        # Not at the top: it loads Kafka's client.
        from alinfik.server.records import REASONS

        registry = metrics.registry
        metrics.start_samples("kafka")
        self.connected = Gauge(
            "alinfik_kafka_connected", "1 while the broker answers.", registry=registry
        )
        self.lag = Gauge(
            "alinfik_kafka_lag_records",
            "Records between the committed offset and the end of the partition.",
            ["topic", "partition"],
            registry=registry,
        )
        self.assigned = Gauge(
            "alinfik_kafka_assigned_partitions",
            "Partitions of the input that this server values; 0 before it joins and after it left.",
            registry=registry,
        )
        self.skipped = Counter(
            "alinfik_kafka_skipped_records",
            "Offsets never read: deleted before their turn, or skipped by --kafka-offset-reset.",
            registry=registry,
        )
        self.transactions = Counter(
            "alinfik_kafka_transactions",
            "Commits by what came of them (committed, aborted).",
            ["outcome"],
            registry=registry,
        )
        self.failures = Counter(
            "alinfik_kafka_failures",
            "Failures after which what was in flight is read again. A rebalance makes one or two; "
            "more and more of them are a stream that does not go on.",
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "alinfik_kafka_commit_seconds",
            "Time to commit one batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.delay_seconds = Distribution(
            "alinfik_kafka_delay_seconds",
            "Time from a record's timestamp to the commit of its valuation or dead letter.",
            buckets=(*_SECONDS, 60.0, 300.0, 900.0, 3600.0),
            registry=registry,
        )
        self.dead_letters = Counter(
            "alinfik_dead_letters",
            "Records sent to the dead-letter topic, by reason.",
            ["reason"],
            registry=registry,
        )
        for outcome in ("committed", "aborted"):
            self.transactions.labels(outcome)
        for reason in REASONS:
            self.dead_letters.labels(reason)

    def lost(self) -> None:
        """Speak for no partition: whoever did is no more."""
        self.connected.set(0)
        self.assigned.set(0)
        self.lag.clear()

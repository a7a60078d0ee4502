"""The demo: labels, a proxy, a bundle, a broker, a server, a stream, and an account of it all."""

import itertools
import json
import signal
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from alinfik.client import Client, Sample, Valuation
from alinfik.client.kafka import watch
from demo.account import print_extremes, print_metrics, print_ranking, ranking
from demo.broker import Broker, start_broker
from demo.models import ModelMissingError, smollm2
from demo.programs import DemoError, Server, arguments_of, run, server
from demo.providers import Market, Text, make_market

# Enough labels for a proxy that beats its baseline, few enough for two cores and two minutes.
_LABELLED = 36
_STREAMED = 100
_CALLED = 8
_TARGET_TEXTS = 16
_PARTITIONS = 3
# The least by which the proxy's rank correlation must beat the length's.
_MARGIN = 0.15


def main() -> int:
    """Run the demo; 0 when it did what it should."""
    # A closed terminal or `kill` unwinds like Ctrl-C: every process is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    console = Console()
    directory = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    try:
        return _Demo(console, directory).run()
    except (DemoError, ModelMissingError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything that the demo started has ended.")
        return 130


class _Demo:
    def __init__(self, console: Console, directory: Path) -> None:
        self._console = console
        self._directory = directory
        market = make_market(_LABELLED + _STREAMED + _CALLED, _TARGET_TEXTS)
        self._targets = {
            name: self._write(f"target-{name}.jsonl", _samples(name, texts))
            for name, texts in market.targets.items()
        }
        self._pool = self._write("pool.jsonl", _slice(market, 0, _LABELLED))
        self._stream_samples = _slice(market, _LABELLED, _STREAMED)
        self._call_samples = _slice(market, _LABELLED + _STREAMED, _CALLED)
        self._stream = self._write("stream.jsonl", self._stream_samples)
        self._bundle = directory / "bundle"
        self._report = directory / "report.html"

    def run(self) -> int:
        started = time.monotonic()
        self._say(f"Six providers, two targets; everything is kept in {self._directory}/")
        metrics = self._distil()
        self._say("Starting a broker …")
        with start_broker() as broker:
            self._say(f"Broker: {broker.description}")
            for topic in ("samples", "valuations", "samples.dlq"):
                broker.create_topic(topic, _PARTITIONS)
            with server(
                self._directory / "server.log",
                "--bundle",
                self._bundle,
                "--kafka-bootstrap",
                broker.bootstrap,
            ) as running:
                streamed, seconds = self._stream_through(broker)
                called = self._call(running)
                self._save_metrics(running)
        self._console.print()
        print_ranking(self._console, streamed, list(self._targets))
        samples = {sample.id: sample for sample in self._stream_samples}
        for target in self._targets:
            print_extremes(self._console, streamed, samples, target, count=3)
        print_metrics(self._console, metrics)
        self._say(
            f"Kafka: {len(streamed)} texts valued in {seconds:.1f} s, "
            f"{len(streamed) / seconds:.0f} a second. gRPC: {len(called)} more."
        )
        for what, path in (
            ("bundle", self._bundle),
            ("report", self._report),
            ("metrics of the server, as Prometheus reads them", self._directory / "metrics.txt"),
        ):
            self._say(f"{what}: {path}")
        self._say(f"Done in {time.monotonic() - started:.0f} s.")
        return self._judge(streamed, metrics)

    def _distil(self) -> dict[str, Any]:
        labels = self._directory / "labels"
        self._say("Labelling with SmolLM2-135M: the gradients of a real language model …")
        run(
            "alinfik-distill",
            "label",
            *("--model", smollm2()),
            *arguments_of(list(self._targets.items())),
            *("--pool", self._pool),
            *("--out", labels),
            *("--ceiling-samples", "40"),
        )
        self._say("Distilling a proxy from the labels …")
        run(
            "alinfik-distill",
            "train",
            *("--labels", labels),
            *("--out", self._bundle),
            *("--backbone", "layers:4"),
        )
        self._say("Measuring the bundle on the labels that were held out …")
        output = run(
            "alinfik-distill",
            "evaluate",
            *("--bundle", self._bundle),
            *("--labels", labels),
            *("--report", self._report),
        )
        return json.loads(output)

    def _stream_through(self, broker: Broker) -> tuple[list[Valuation], float]:
        count = len(self._stream_samples)
        self._say(f"Streaming {count} texts that nothing has seen yet …")
        begun = time.monotonic()
        run(
            "alinfik",
            "ingest",
            self._stream,
            *("--kafka-bootstrap", broker.bootstrap),
            *("--topic", "samples"),
        )
        valuations = watch(
            bootstrap=broker.bootstrap, topic="valuations", from_beginning=True, count=count
        )
        received = list(valuations)
        return received, time.monotonic() - begun

    def _call(self, running: Server) -> list[Valuation]:
        with Client(running.grpc) as client:
            return client.score(self._call_samples)

    def _save_metrics(self, running: Server) -> None:
        with urllib.request.urlopen(f"http://{running.metrics}/metrics") as response:
            (self._directory / "metrics.txt").write_bytes(response.read())

    def _judge(self, streamed: list[Valuation], metrics: dict[str, Any]) -> int:
        """Say whether the values make sense, by what is known beforehand."""
        expected = {"arithmetic": "word-problems", "python": "python-tasks"}
        complaints: list[str] = []
        for target, provider in expected.items():
            first, _ = ranking(streamed, target)[0]
            if first != provider:
                complaints.append(f"for {target}, {first} ranks first and {provider} should")
        complaints += [
            f"for {target['target']}, the proxy's rank correlation beats that of length by less "
            f"than {_MARGIN}"
            for target in metrics["targets"]
            if target["spearman"] < target["length_spearman"] + _MARGIN
        ]
        for complaint in complaints:
            self._console.print(f"[bold red]Not as it should be:[/] {complaint}")
        return 1 if complaints else 0

    def _write(self, name: str, samples: Sequence[Sample]) -> Path:
        path = self._directory / name
        lines = (
            json.dumps(
                {
                    "id": sample.id,
                    "provider": sample.provider,
                    "prompt": sample.prompt,
                    "completion": sample.completion,
                }
            )
            for sample in samples
        )
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _samples(provider: str, texts: Sequence[Text], start: int = 0) -> list[Sample]:
    return [
        Sample(
            id=f"{provider}-{number}",
            provider=provider,
            prompt=text.prompt,
            completion=text.completion,
        )
        for number, text in enumerate(texts, start)
    ]


def _slice(market: Market, start: int, count: int) -> list[Sample]:
    """Take the same range of every provider's texts."""
    return list(
        itertools.chain.from_iterable(
            _samples(provider, texts[start : start + count], start)
            for provider, texts in market.providers.items()
        )
    )


if __name__ == "__main__":
    sys.exit(main())

"""Every query of the dashboard and the alerts, against a real Prometheus and a working server."""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from kafka import KafkaProducer

from alinfik.client import Client, Sample
from alinfik.client.kafka import ingest
from demo.broker import free_port
from tests.kafka.conftest import apache_kafka
from tests.server_process import running_server
from tests.support import skip_or_fail

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/alinfik.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Many times what each step takes on a busy machine.
WAIT_SECONDS = 60


class Prometheus(NamedTuple):
    """Its HTTP API."""

    address: str

    def get(self, path, **parameters):
        query = urllib.parse.urlencode(parameters, doseq=True)
        with urllib.request.urlopen(f"http://{self.address}{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression):
        """The finite values that a query has now."""
        result = self.get("/api/v1/query", query=expression)["result"]
        values = [float(series["value"][1]) for series in result]
        return [value for value in values if math.isfinite(value)]


@contextmanager
def prometheus(directory, target):
    """Prometheus under deploy's configuration, but for where it scrapes and how often."""
    if not (program := shutil.which("prometheus")):
        skip_or_fail("Prometheus is not installed: apt-get install prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / path) for path in config["rule_files"]]
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [program, f"--config.file={directory}/prometheus.yml",
             f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(30)


def traffic(server, bootstrap):
    """A little of everything that the server counts, once."""
    samples = [
        Sample(id=str(number), completion="She sold 24 clips. " * (1 + number))
        for number in range(9)
    ]
    with Client(server.grpc) as client:
        client.score(samples)
        list(client.score_stream([*samples, Sample(id="blank")]))
        client.bundles()
    ingest(iter(samples), bootstrap=bootstrap, topic="samples")
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    producer.send("samples", b"no sample").get(WAIT_SECONDS)
    producer.close()


@pytest.fixture(scope="module")
def system(tiny_bundle, tmp_path_factory):
    """Broker, server and Prometheus; also what gives them something to do."""
    with apache_kafka() as kafka:
        for topic in ("samples", "valuations", "samples.dlq"):
            kafka.create_topic(topic, 2)
        with (
            # The same texts come again and again, and are to go to the model each time.
            running_server(
                tiny_bundle, "--kafka-bootstrap", kafka.bootstrap, "--cache-samples", "0"
            ) as server,
            prometheus(tmp_path_factory.mktemp("prometheus"), server.metrics) as scraper,
        ):
            yield scraper, lambda: traffic(server, kafka.bootstrap)


def eventually(system, missing):
    """Keep the system busy until nothing is missing any more."""
    scraper, work = system
    deadline = time.monotonic() + WAIT_SECONDS
    left = missing(scraper)
    while left and time.monotonic() < deadline:
        work()
        left = missing(scraper)
    assert not left


def without_connection(check):
    """Prometheus takes a second to listen; until then everything is missing."""

    def check_or_all(scraper):
        try:
            return check(scraper)
        except urllib.error.URLError as error:
            return [str(error)]

    return check_or_all


def queries():
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "20s")
            # What Grafana puts there for All, and for one target.
            expression = expression.replace("$instance", ".*").replace("$target", "gsm8k")
            assert "$" not in expression
            yield panel["title"], expression


def test_every_query_of_every_panel_has_data(system):
    left = dict(queries_by_name := {f"{title}: {q}": q for title, q in queries()})
    assert len(queries_by_name) > len(PANELS)

    @without_connection
    def missing(scraper):
        for name, query in list(left.items()):
            if scraper.values(query):
                del left[name]
        return list(left)

    eventually(system, missing)


def test_every_variable_has_values(system):
    variables = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert [variable["name"] for variable in variables] == ["instance", "target"]

    @without_connection
    def missing(scraper):
        left = []
        for variable in variables:
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            if not scraper.get(f"/api/v1/label/{label}/values", **{"match[]": metric}):
                left.append(variable["name"])
        return left

    eventually(system, missing)


def test_every_alert_reads_metrics_that_exist(system):
    names = set(re.findall(r"alinfik_\w+", (DEPLOY / "prometheus/rules/alinfik.yml").read_text()))
    assert names

    @without_connection
    def missing(scraper):
        return sorted(names - set(scraper.get("/api/v1/label/__name__/values")))

    eventually(system, missing)

    @without_connection
    def failing(scraper):
        rules = [
            rule for group in scraper.get("/api/v1/rules")["groups"] for rule in group["rules"]
        ]
        assert rules
        return [rule["name"] for rule in rules if rule["health"] != "ok"]

    eventually(system, failing)


def test_panels_have_distinct_ids_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = sorted(
        (panel["gridPos"]["y"], panel["gridPos"]["x"], panel["gridPos"]["w"])
        for panel in DASHBOARD["panels"]
    )
    for (y, x, width), (next_y, next_x, _) in pairwise(places):
        assert y != next_y or x + width <= next_x
        assert x + width <= 24


def test_panels_say_what_they_show_and_in_which_unit():
    for panel in PANELS:
        assert panel["description"], panel["title"]
        if panel["type"] in {"stat", "timeseries"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]

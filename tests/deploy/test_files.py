"""What can be said of the deployment without a container engine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from alinfik.server.settings import ServerSettings
from tests.support import skip_or_fail

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


def promtool(*arguments):
    if not (program := shutil.which("promtool")):
        skip_or_fail("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        [program, *arguments], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration():
    promtool("check", "config", "deploy/prometheus/prometheus.yml")
    promtool("check", "rules", *map(str, DEPLOY.glob("prometheus/rules/*.yml")))


def test_alerts_fire_where_they_should():
    promtool("test", "rules", "tests/deploy/rules_test.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    _, tag = SERVICES[name]["image"].rsplit(":", 1)
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_alone(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist_and_volumes_are_declared(name):
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
        elif not source.startswith("${"):
            assert source in COMPOSE["volumes"]


def test_services_wait_for_what_they_need():
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[needed]["restart"] == "no"


def test_the_server_is_killed_only_after_it_had_its_time_to_drain():
    grace = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServerSettings.model_fields["drain_seconds"].default


def test_the_topics_are_those_that_the_server_uses_by_default():
    [script] = SERVICES["topics"]["command"]
    created = re.search(r"for topic in (.*); do", script).group(1).split()
    fields = ServerSettings.model_fields
    assert created == [
        fields[name].default for name in ("kafka_input", "kafka_output", "kafka_dead_letters")
    ]
    assert f"--entity-name {created[-1]} --add-config max.message.bytes=2097152" in script


def settings_in_environment():
    dockerfile = dict(re.findall(r"(ALINFIK_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    return dockerfile | SERVICES["server"]["environment"]


def test_the_image_sets_only_settings_that_the_server_has(monkeypatch):
    for name, value in settings_in_environment().items():
        assert name.removeprefix("ALINFIK_").lower() in ServerSettings.model_fields
        monkeypatch.setenv(name, value)
    settings = ServerSettings()
    assert settings.listen.rpartition(":")[2] == "50051"
    assert settings.metrics.rpartition(":")[2] == "9464"


def test_prometheus_scrapes_the_port_that_the_image_gives_metrics():
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    [names] = job["dns_sd_configs"]
    assert names["names"] == ["server"]
    assert str(names["port"]) == settings_in_environment()["ALINFIK_METRICS"].rpartition(":")[2]


def test_grafana_finds_the_dashboard_and_its_source():
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/alinfik.yaml").read_text()
    )["providers"][0]
    assert provider["options"]["path"] in mounts.values()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    [folder] = [mine for mine, theirs in mounts.items() if home.startswith(theirs + "/")]
    assert (DEPLOY / folder / Path(home).name).is_file()
    [source] = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_the_dockerfile_copies_what_is_there_and_not_ignored():
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(
            r"^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
        )
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)

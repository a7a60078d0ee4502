from pathlib import Path

import pytest
from pydantic import ValidationError

from alinfik.server.settings import ServerSettings


def test_every_setting_says_what_it_does() -> None:
    undescribed = [n for n, f in ServerSettings.model_fields.items() if not f.description]
    assert undescribed == []


def test_bundles_are_one_or_more_however_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServerSettings(bundle=Path("b")).bundle == [Path("b")]
    flags = ["--bundle", "a", "--bundle", "b"]
    assert ServerSettings(_cli_parse_args=flags).bundle == [Path("a"), Path("b")]
    monkeypatch.setenv("ALINFIK_BUNDLE", "c,d")
    assert ServerSettings().bundle == [Path("c"), Path("d")]


def test_a_watch_needs_a_root() -> None:
    with pytest.raises(ValidationError, match="--watch-seconds needs a --bundle-root"):
        ServerSettings(bundle=Path("b"), watch_seconds=1)


def test_a_bundle_root_is_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="typo is no directory"):
        ServerSettings(bundle=Path("b"), bundle_root=tmp_path / "typo")


@pytest.mark.parametrize("twice", ["kafka_output", "kafka_dead_letters"])
def test_the_server_does_not_read_what_it_writes(twice: str) -> None:
    with pytest.raises(ValidationError, match="must be three topics"):
        ServerSettings(bundle=Path("b"), kafka_bootstrap="b:9092", **{twice: "samples"})


def test_a_request_that_could_never_be_queued_is_refused() -> None:
    with pytest.raises(ValidationError, match="no such request could ever be queued"):
        ServerSettings(bundle=Path("b"), queue_samples=10, max_samples_per_request=11)


def test_the_environment_sets_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALINFIK_BUNDLE", "from-environment")
    monkeypatch.setenv("ALINFIK_WORKERS", "2")
    settings = ServerSettings()
    assert (settings.bundle, settings.workers) == ([Path("from-environment")], 2)


def test_a_server_has_a_door() -> None:
    with pytest.raises(ValidationError, match="nobody could send a sample"):
        ServerSettings(bundle=Path("b"), listen="")
    assert ServerSettings(bundle=Path("b"), listen="", kafka_bootstrap="b:9092").listen == ""

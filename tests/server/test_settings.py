from pathlib import Path

import pytest
from pydantic import ValidationError

from alinfik.server.settings import ServerSettings


def test_every_setting_says_what_it_does() -> None:
    undescribed = [n for n, f in ServerSettings.model_fields.items() if not f.description]
    assert undescribed == []


def test_threads_are_shared_out_among_workers() -> None:
    one = ServerSettings(bundle=Path("b"), workers=1).threads()
    assert one >= 1
    assert ServerSettings(bundle=Path("b"), workers=10_000).threads() == 1
    assert ServerSettings(bundle=Path("b"), threads_per_worker=3).threads() == 3


def test_a_request_that_could_never_be_queued_is_refused() -> None:
    with pytest.raises(ValidationError, match="no such request could ever be queued"):
        ServerSettings(bundle=Path("b"), queue_samples=10, max_samples_per_request=11)


def test_the_environment_sets_what_flags_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALINFIK_BUNDLE", "from-environment")
    monkeypatch.setenv("ALINFIK_WORKERS", "2")
    settings = ServerSettings()
    assert (settings.bundle, settings.workers) == (Path("from-environment"), 2)

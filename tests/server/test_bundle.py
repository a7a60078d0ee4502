import shutil
from pathlib import Path

import pytest

from alinfik.command import CommandError
from alinfik.server.bundle import BundleError, load_bundle
from tests.tiny_bundle import read_manifest, write_manifest


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own to spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert isinstance(caught.value, CommandError)
    return str(caught.value)


def test_a_bundle_as_written_loads(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.id == read_manifest(bundle).bundle_id
    assert loaded.targets == ["gsm8k", "mbpp"]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"{tmp_path}/gone: no such directory"


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "a bundle is a directory" in refusal(tmp_path / "file")


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a bundle: it has no manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"{", b'{"targets": 3}', b"\xff\xfe"])
def test_a_manifest_that_does_not_parse_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "is not a bundle manifest" in refusal(bundle)


def test_an_unknown_format_is_refused_for_just_that(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    text = text.replace('"format_version": 1', '"format_version": 7, "novelty": {}')
    (bundle / "manifest.json").write_text(text)
    assert "has format version 7, and this server knows 1" in refusal(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_one_changed_byte_is_refused(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert f"{bundle / name} has changed since the bundle was written (SHA-256" in refusal(bundle)


def test_one_byte_more_is_refused(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as model:
        model.write(b"x")
    assert "bytes, the manifest says" in refusal(bundle)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    assert f"{bundle / 'tokenizer.json'} is missing" in refusal(bundle)


def test_a_file_that_cannot_be_read_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    # Root may open it too, and nobody may read what is not mapped.
    (bundle / "manifest.json").symlink_to("/proc/self/mem")
    assert "cannot be read (Input/output error)" in refusal(bundle)


def test_an_unlisted_file_is_refused(bundle: Path) -> None:
    (bundle / "custom_operators.so").write_bytes(b"")
    assert f"{bundle / 'custom_operators.so'} is not part of the bundle" in refusal(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ".."])
def test_a_listed_file_outside_the_bundle_is_refused(bundle: Path, name: str) -> None:
    manifest = read_manifest(bundle)
    manifest.files[name].sha256 = "0" * 64
    text = (bundle / "manifest.json").read_text()
    entry = f'"files": {{"{name}": {{"sha256": "{"0" * 64}"}},'
    (bundle / "manifest.json").write_text(text.replace('"files": {', entry))
    assert "not a plain file name" in refusal(bundle)


def test_an_edited_id_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace(read_manifest(bundle).bundle_id, "f" * 64))
    assert "has been edited: its bundle id is ffffffffffff…" in refusal(bundle)


def test_one_changed_figure_of_the_manifest_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    changed = text.replace('"length_spearman": 0.4', '"length_spearman": 0.1')
    (bundle / "manifest.json").write_text(changed)
    assert "has been edited: its bundle id is" in refusal(bundle)


def test_contradictions_are_refused(bundle: Path) -> None:
    whole = read_manifest(bundle)

    def spoilt(field: str, value: object) -> str:
        owner = manifest = read_manifest(bundle)
        *path, last = field.split(".")
        for name in path:
            owner = getattr(owner, name)
        if isinstance(value, list):
            del getattr(owner, last)[:]
            getattr(owner, last).extend(value)
        else:
            setattr(owner, last, value)
        write_manifest(bundle, manifest)
        found = refusal(bundle)
        write_manifest(bundle, whole)
        return found

    assert "targets must be one or more" in spoilt("targets", [])
    twice = [whole.targets[0]] * 2
    assert "each named once" in spoilt("targets", twice)
    descending = [1.0] * 100 + [0.0]
    assert "101 ascending" in spoilt("out_of_distribution.score_quantiles", descending)
    assert "hold {prompt} once" in spoilt("encoding.prompt_template", "Q:")
    two = "{completion}{completion}"
    assert "hold {completion} once" in spoilt("encoding.completion_template", two)
    assert "leaves no room" in spoilt("encoding.token_limit", 1)

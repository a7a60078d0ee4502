"""`alinfik-server check` and `alinfik-server token`, as their users run them."""

import json
import socket
import subprocess
from pathlib import Path

import pytest
import trustme

from alinfik.server.tokens import read_tokens
from tests.server.certificates import write_authority, write_pair
from tests.server_process import COMMAND, running_server
from tests.tiny_bundle import read_manifest

ANY_PORT = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=60
    )


def refusal(*arguments: str | Path) -> str:
    ended = command(*arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def made_token(*arguments: str) -> tuple[str, str]:
    """A token and its line."""
    ended = command("token", *arguments)
    assert ended.returncode == 0, ended
    token, line = ended.stdout.splitlines()
    return token.removeprefix("token: "), line.removeprefix("line:  ")


def test_it_says_in_json_what_settings_come_to(tiny_bundle: Path, tmp_path: Path) -> None:
    ended = command("check", "--bundle", tiny_bundle, *ANY_PORT)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    (bundle,) = found.pop("bundles")
    assert bundle.pop("device") in ("cpu", "cuda")
    assert bundle == {
        "bundle_id": read_manifest(tiny_bundle).bundle_id,
        "targets": ["gsm8k", "mbpp"],
        "precision": "float32",
    }
    assert found == {
        "tls": "none",
        "tokens": None,
    }
    authority = trustme.CA()
    pair = write_pair(tmp_path, "server", authority)
    (tmp_path / "tokens").write_text(made_token("ops", "--role", "score,admin")[1])
    ended = command(
        *("check", "--bundle", tiny_bundle, *ANY_PORT, "--listen", "0.0.0.0:0"),
        *("--tls-certificate", pair.certificate, "--tls-key", pair.key),
        *("--tls-client-ca", write_authority(tmp_path, "ca", authority)),
        *("--tokens", tmp_path / "tokens"),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert (found["tls"], found["tokens"]) == ("mutual", 1)


def test_it_says_in_one_line_what_will_not_do(
    tiny_bundle: Path, failing_bundle: Path, tmp_path: Path
) -> None:
    check = ("check", "--bundle", tiny_bundle, *ANY_PORT)
    tokens = tmp_path / "tokens"
    tokens.write_text("alice score")
    pair = write_pair(tmp_path, "server", trustme.CA())
    tls = ("--tls-certificate", pair.certificate, "--tls-key", pair.certificate)
    assert "--bundle is required" in refusal("check")
    assert "is not a bundle" in refusal("check", "--bundle", tmp_path, *ANY_PORT)
    assert "has no model.int8.onnx" in refusal(*check, "--precision", "int8")
    assert f"--tokens {tokens}, line 1: has 2 fields" in refusal(*check, "--tokens", tokens)
    shadow = (tiny_bundle, "--shadow", tiny_bundle)
    assert "is the first --bundle itself" in refusal(*check[:2], *shadow, *ANY_PORT)
    assert "holds no private key" in refusal(*check, *tls)
    assert "opens the server to the network" in refusal(*check, "--listen", "0.0.0.0:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--listen", "--metrics"):
            assert f"{flag} {address}: another program" in refusal(*check, flag, address)
    assert command("check", "--bundle", failing_bundle, *ANY_PORT).returncode == 0


def test_a_server_says_in_one_line_that_it_would_be_open_to_the_network(tiny_bundle: Path) -> None:
    network = ("--listen", "0.0.0.0:0")
    said = refusal("--bundle", tiny_bundle, *ANY_PORT, *network)
    assert "opens the server to the network with neither TLS nor tokens" in said
    with running_server(tiny_bundle, *network, "--allow-insecure") as server:
        assert server.grpc.startswith("0.0.0.0:")


def test_tokens_are_made_for_a_name_and_its_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server's own settings must not be in its way.
    (tmp_path / "server.toml").write_text('bundle = "b"\n')
    monkeypatch.setenv("ALINFIK_CONFIG", str(tmp_path / "server.toml"))
    token, line = made_token("alice", "--role", "score", "--role", "admin")
    (tmp_path / "tokens").write_text(line)
    [holder] = read_tokens(tmp_path / "tokens")
    assert (holder.name, holder.roles) == ("alice", {"score", "admin"})
    assert len(token) >= 43
    assert token not in line
    assert made_token("alice", "--role", "score")[0] != token
    assert "--role is required" in refusal("token", "alice")
    assert "a name is one word" in refusal("token", "alice b", "--role", "score")
    assert "'score', 'quote' or 'admin'" in refusal("token", "alice", "--role", "root")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alinfik.command import CommandError
from alinfik.server.tokens import ROLES, Tokens, new_token, read_tokens

HASH = "a" * 64
LINES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.builds(
            " ".join,
            st.tuples(
                st.text("ab#", min_size=1, max_size=3),
                st.sampled_from(["score", "score,admin", "admin,", "quote,quote", ",", "Score"]),
                st.text("aAfF09g", min_size=62, max_size=65) | st.just(HASH),
            ),
        ),
    ),
    max_size=4,
).map("\n".join)


@given(content=st.binary(max_size=300) | LINES.map(lambda text: text.encode(errors="replace")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_parses_or_says_which_line_is_wrong(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    holders, said = [], f"--tokens {path}"
    try:
        holders = read_tokens(path)
    except CommandError as error:
        said = str(error)
    assert said.startswith(f"--tokens {path}")
    assert HASH not in said
    for holder in holders:
        assert holder.roles
        assert holder.roles <= set(ROLES)
        assert holder.sha256 == holder.sha256.lower()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("alice score", "line 3: has 2 fields; it takes NAME ROLE"),
        (f"alice bob score {HASH}", "line 3: has 4 fields"),
        (f"alice scorer {HASH}", "line 3: roles are score, quote, admin"),
        (f"alice score,score {HASH}", "line 3: roles are score, quote, admin, each once"),
        ("alice score s3cret", "line 3: the third field is the token's SHA-256"),
        (f"alice score {HASH}\nbob admin {HASH.upper()}", "line 4: alice has that token already"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who may\n\n{line}\n")
    with pytest.raises(CommandError, match=f"--tokens {path}, {says}") as told:
        read_tokens(path)
    assert "s3cret" not in str(told.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read \\(No such file"):
        read_tokens(tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"caf\xe9 score " + HASH.encode())
    with pytest.raises(CommandError, match="is not text in UTF-8"):
        read_tokens(tmp_path / "latin")


def test_a_new_token_is_known_by_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    made = [new_token("alice", ["score"]), new_token("ops", ["score", "admin"])]
    path.write_text("\n".join(line for _, line in made))
    tokens = Tokens(path)
    assert len(tokens) == 2
    alice, ops = (tokens.holder(token) for token, _ in made)
    assert alice is not None
    assert ops is not None
    assert (alice.name, alice.roles) == ("alice", {"score"})
    assert (ops.name, ops.roles) == ("ops", {"score", "admin"})
    for nobodys in ("", "alice", made[0][0][:-1], alice.sha256, "é"):
        assert tokens.holder(nobodys) is None
    assert not any(token in path.read_text() for token, _ in made)


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# nobody yet\n")
    assert len(Tokens(path)) == 0


def test_a_changed_file_counts_and_a_broken_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alinfik.server.tokens._LOOK_SECONDS", 0.0)
    path = tmp_path / "tokens"
    (old, old_line), (new, new_line) = new_token("a", ["score"]), new_token("b", ["score"])
    path.write_text(old_line)
    tokens = Tokens(path)
    (tmp_path / "next").write_text(new_line)
    # As an editor and a Kubernetes secret replace a file.
    (tmp_path / "next").replace(path)
    assert tokens.holder(old) is None
    assert tokens.holder(new) is not None
    path.write_text("half a li")
    assert tokens.holder(new) is not None
    path.unlink()
    assert tokens.holder(new) is not None
    path.write_text("")
    assert tokens.holder(new) is None

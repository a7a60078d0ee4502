"""What docs/client.md shows is run, block by block."""

import re
from pathlib import Path

import pytest

from alinfik.v1 import ExplainResponse, Explanation, TokenValue
from tests.client.odd_server import odd_server

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)
EXPLAIN = next(block for block in BLOCKS if "client.explain" in block)
TLS = next(block for block in BLOCKS if "Tls(" in block)


def run(block, address):
    there = block.replace("127.0.0.1:50051", address).replace("values.example.com:50051", address)
    assert there != block
    exec(compile(there, "docs/client.md", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("block", [block for block in BLOCKS if block not in (EXPLAIN, TLS)])
def test_a_block_runs(block, address, capsys):
    run(block, address)
    assert capsys.readouterr().out.count("\n") >= 2


def test_the_explanation_runs(capsys):
    def explain(request, _):
        token = TokenValue(field=TokenValue.FIELD_COMPLETION, start=4, end=5, values=[0.5])
        explanation = Explanation(sample_id="1", targets=["gsm8k"], tokens=[token])
        return ExplainResponse(explanations=[explanation] * len(request.samples))

    with odd_server(explain=explain) as address:
        run(EXPLAIN, address)
    assert capsys.readouterr().out == "'2' {'gsm8k': 0.5}\n"


def test_the_token_goes_over_tls(tls_files, tls_server, tmp_path, monkeypatch, capsys):
    seen = []
    (tmp_path / "ca.pem").write_bytes((tls_files / "ca.pem").read_bytes())
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.chdir(tmp_path)
    with tls_server(seen=seen) as address:
        run(TLS, address)
    assert seen == ["Bearer s3cret"]
    assert 'sample_id: "1"' in capsys.readouterr().out

"""Which root may import what: docs/architecture.md draws the arrows, this holds them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What no module of a root, or of a folder in it, imports, not even inside a function.
FORBIDDEN = {
    "proto": {
        "alinfik.distill",
        "alinfik.server",
        "alinfik.client",
        "onnxruntime",
        "torch",
    },
    "proto/alinfik/command": {"kafka"},
    "proto/alinfik/v1": {"kafka"},
    "distill": {"alinfik.server", "alinfik.client", "grpc", "kafka"},
    "server": {"alinfik.distill", "alinfik.client", "torch", "transformers"},
    "clients": {"alinfik.distill", "alinfik.server", "onnxruntime", "tokenizers", "torch"},
}


def imported(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            module = node.module or ""
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("root", sorted(FORBIDDEN))
def test_no_root_imports_what_another_is_for(root):
    sources = [path for path in (ROOT / root).rglob("*.py") if "_pb2" not in path.name]
    assert sources
    for source in sources:
        for name in imported(source):
            broken = [f for f in FORBIDDEN[root] if name == f or name.startswith(f + ".")]
            assert not broken, f"{source.relative_to(ROOT)} imports {name}"


def test_no_root_closes_the_namespace():
    assert not list(ROOT.glob("*/alinfik/__init__.py"))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import alinfik.client",
            {
                "alinfik.distill",
                "alinfik.server",
                "kafka",
                "numpy",
                "onnxruntime",
                "pyarrow",
                "pydantic",
            },
        ),
        (
            "import alinfik.client.__main__",
            {"alinfik.distill", "alinfik.server", "kafka", "numpy", "onnxruntime", "pyarrow"},
        ),
        (
            "import alinfik.server.__main__",
            {"alinfik.client", "alinfik.distill", "torch", "transformers"},
        ),
    ],
)
def test_importing_loads_nothing_heavier(statement, absent):
    code = f"{statement}; import sys; print(*sorted(set(sys.modules) & {absent!r}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import google.rpc.status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).parents[2] / "proto"
INCLUDES = [
    ROOT,
    Path(str(files("grpc_tools"))) / "_proto",
    Path(google.rpc.status_pb2.__file__).parents[2],
]


def lint(protos: Path, names: list[str], image: Path) -> subprocess.CompletedProcess[str]:
    assert protoc.main([
        "protoc", f"-I{protos}", *(f"-I{include}" for include in INCLUDES),
        "--include_imports", "--include_source_info", f"--descriptor_set_out={image}", *names,
    ]) == 0  # fmt: skip
    buf = Path(sys.executable).parent / "buf"
    command = [buf, "lint", image, "--config", ROOT / "buf.yaml"]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_protos_keep_the_standard_rules(tmp_path):
    names = [str(path.relative_to(ROOT)) for path in ROOT.glob("alinfik/v1/*.proto")]
    assert lint(ROOT, names, tmp_path / "image.binpb").stdout == ""


def test_a_broken_rule_is_found(tmp_path):
    bad = tmp_path / "alinfik" / "v1" / "bad.proto"
    bad.parent.mkdir(parents=True)
    bad.write_text('syntax = "proto3"; package alinfik.v1; message bad_name { string Field = 1; }')
    found = lint(tmp_path, ["alinfik/v1/bad.proto"], tmp_path / "image.binpb").stdout
    assert "bad_name" in found
    assert "Field" in found

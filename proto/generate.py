"""Regenerates the Python of `alinfik/v1/*.proto`: `make proto`, or `proto/generate.py [OUT]`.

The generated files are committed, so that installing needs no protoc; a test proves them fresh.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
_MYPY_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(out: Path) -> None:
    """Write `alinfik/v1/*_pb2*.py[i]` under ``out``."""
    includes = [ROOT, Path(str(files("grpc_tools"))) / "_proto", _site_packages()]
    sources = [path.relative_to(ROOT) for path in sorted(ROOT.glob("alinfik/v1/*.proto"))]
    services = [path for path in sources if path.stem.endswith("_service")]
    for plugins, paths in (
        (("python", "mypy"), sources),
        (("grpc_python", "mypy_grpc"), services),
    ):
        arguments = [f"-I{include}" for include in includes]
        arguments += [f"--{plugin}_out={out}" for plugin in plugins]
        # Beside this interpreter, also where its environment is not the activated one.
        scripts = Path(sys.executable).parent
        arguments += [f"--plugin={name}={scripts / name}" for name in _MYPY_PLUGINS]
        if protoc.main(["protoc", *arguments, *map(str, paths)]) != 0:
            raise SystemExit("protoc failed")


def _site_packages() -> Path:
    """Where googleapis-common-protos keeps google/rpc/status.proto."""
    import google.rpc.status_pb2

    return Path(str(google.rpc.status_pb2.__file__)).parents[2]


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)

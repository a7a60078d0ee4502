import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2] / "proto"


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_python_is_what_the_protos_generate(tmp_path):
    load_generator().generate(tmp_path)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = {
        path.relative_to(ROOT): path.read_text()
        for path in ROOT.glob("alinfik/v1/*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert sorted(fresh) == sorted(committed)
    stale = [str(path) for path in fresh if fresh[path] != committed[path]]
    assert not stale, "run `make proto`"

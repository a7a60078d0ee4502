"""The wheel in fresh environments: each extra brings what its half needs, and nothing heavier.

The steps are those of the Dockerfile, which a machine without a container engine cannot run.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).parent / "uv"


def run(*command, **options):
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=300, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(UV, "build", "--wheel", "--out-dir", out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def install(wheel, tmp_path_factory):
    """Installs the wheel with an extra into an environment of its own; returns its bin folder."""

    def install(extra):
        environment = tmp_path_factory.mktemp("environment")
        run(UV, "venv", "--python", sys.executable, "--clear", environment)
        run(
            UV, "pip", "install", "--python", environment / "bin" / "python",
            "--constraint", ROOT / "constraints.txt", f"{wheel}{extra}",
        )  # fmt: skip
        return environment / "bin"

    return install


def absent(bin_, *modules):
    """Those of ``modules`` that cannot be found."""
    code = (
        "import importlib.util as u, sys; "
        "print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    )
    return set(run(bin_ / "python", "-c", code, *modules).split())


def test_the_wheel_holds_the_four_roots_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {"/".join(name.split("/")[:2]) for name in names if name.startswith("alinfik/")}
    assert folders == {
        f"alinfik/{part}" for part in ("client", "command", "distill", "kafka", "server", "v1")
    }
    assert {name.split("/")[0] for name in names} == {"alinfik", "alinfik-0.1.0.dist-info"}
    for part in ("client", "command", "distill", "kafka", "server", "v1"):
        assert f"alinfik/{part}/py.typed" in names


def test_the_image_builds_from_what_the_dockerfile_copies(tmp_path):
    dockerfile = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source)
            else:
                shutil.copy(ROOT / source, tmp_path / source)
    [made] = re.findall(r"^RUN mkdir -p (\S+)$", dockerfile, re.MULTILINE)
    (tmp_path / made).mkdir(parents=True)
    run(UV, "build", "--wheel", "--out-dir", tmp_path / "dist", tmp_path)
    names = zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))).namelist()
    assert "alinfik/server/healthcheck.py" in names
    assert not [name for name in names if name.startswith("alinfik/distill")]


def test_the_base_install_is_the_client_alone(install):
    bin_ = install("")
    run(bin_ / "python", "-W", "error", "-c", "import alinfik.client, alinfik.client.__main__")
    heavy = {"kafka", "numpy", "onnxruntime", "prometheus_client", "tokenizers", "torch"}
    assert absent(bin_, *heavy) == heavy
    assert "score" in run(bin_ / "alinfik", "--help")
    done = subprocess.run([bin_ / "alinfik", "watch"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'alinfik[kafka]'" in done.stderr


def test_the_server_install_has_no_torch(install):
    bin_ = install("[server]")
    run(bin_ / "python", "-W", "error", "-c", "import alinfik.server.__main__")
    assert absent(bin_, "torch", "transformers", "datasets") == {
        "torch", "transformers", "datasets",
    }  # fmt: skip
    assert "--bundle" in run(bin_ / "alinfik-server", "--help")
    assert "--listen" in run(bin_ / "python", "-m", "alinfik.server.healthcheck", "--help")

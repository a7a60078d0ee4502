"""Apache Kafka's jars, fetched once by Maven into a cache that every checkout shares."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

POM = Path(__file__).parent / "kafka" / "pom.xml"
JAVA_VERSION = 17


class JarsMissingError(RuntimeError):
    """Apache Kafka cannot run here; the message says what to install."""


def java() -> str:
    """The path of a Java runtime that is new enough for Kafka 4.

    Raises:
        JarsMissingError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        raise JarsMissingError(f"no java found: install Java {JAVA_VERSION} and Maven")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < JAVA_VERSION:
        line = said.partition("\n")[0]
        raise JarsMissingError(f"{found} is {line}: install Java {JAVA_VERSION} and Maven")
    return found


def kafka_classpath() -> str:
    """Java's class path for Kafka and its tools: 54 MB that Maven fetches on the first call.

    Raises:
        JarsMissingError: they are not in the cache and Maven is absent or failed.
    """
    version = re.search(r"<kafka.version>(.+)</kafka.version>", POM.read_text())
    if version is None:
        raise ValueError(f"{POM} names no kafka.version")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alinfik"
    jars = cache / f"kafka-{version[1]}"
    if not jars.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="kafka-") as fetched:
            _fetch(Path(fetched) / "jars")
            try:
                (Path(fetched) / "jars").rename(jars)
            except OSError:  # another process was first, and the jars are the same
                if not jars.is_dir():
                    raise
    return f"{jars}/*"


def _fetch(directory: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsMissingError("no mvn found: install Maven, which fetches Apache Kafka")
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    ran = subprocess.run(
        [maven, "-q", "-B", "-f", str(POM), *goal, f"-DoutputDirectory={directory}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        said = (ran.stdout + ran.stderr).strip()[-500:]
        raise JarsMissingError(f"Maven could not fetch Apache Kafka: {said}")

"""Answers on their way into a file: they outlive the process that gathers them.

In: answers, in the samples' order. Out: the file that ``--out`` names, once it is whole. Until then
they are lines in ``OUT.partial``, a digest of the sample before each answer's JSON, each written
before the next is drawn, so that a run that was interrupted, killed even, goes on behind the last
whole line. Knows nothing of servers.

The lines are all that is remembered. A run that goes on must have the same samples, the same bundle
and the same targets as they show: two runs in one file would be worth nothing.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Self

from alinfik.client.batches import Scored
from alinfik.client.output import scored_json
from alinfik.client.tables import columns, flat_row, write_csv
from alinfik.command import CommandError, FailedError
from alinfik.v1 import Sample

_FORMATS = (".jsonl", ".csv", ".parquet")


class Partial:
    """The file of one run that is not over yet.

    Args:
        out: what the file is to become: ``.jsonl``, or a flat table in ``.csv`` or ``.parquet``.
        bundle_id: the bundle that gives every value.
        targets: those that every valuation is for, in order.

    Raises:
        CommandError: ``out`` cannot be written, or another run is writing it.
    """

    def __init__(self, out: Path, bundle_id: str, targets: Sequence[str]) -> None:
        if out.is_dir():
            raise CommandError(f"--out {out} is a directory; give a file in it")
        if out.suffix.lower() not in _FORMATS:
            raise CommandError(f"--out {out}: give a file that ends in .jsonl, .csv or .parquet")
        if out.suffix.lower() == ".parquet":
            import_module("alinfik.client.parquet")  # says now, not at the end, if it cannot
        self.path = out.with_name(out.name + ".partial")
        self._out = out
        self._bundle_id = bundle_id
        self._targets = list(targets)
        self._lines = 0
        self._bytes = 0
        self._added = False
        self._file = self._open()

    def _open(self) -> BinaryIO:
        try:
            file = self.path.open("a+b")
        except OSError as error:
            raise CommandError(
                f"--out {self._out}: cannot be written ({error.strerror})"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CommandError(f"{self.path}: another run is writing it") from error
        except OSError:
            pass  # a file system without locks: `_finish` notices another run too
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            # Closed last: until then it is locked.
            with self._file:
                self._finish()
            return
        empty = os.fstat(self._file.fileno()).st_size == 0
        with suppress(OSError):  # a full disk, which is what ended the run
            self._file.close()
        if empty:
            self.path.unlink()
        elif self._added:
            print(
                f"{self.path} keeps what is answered; the same command goes on from there",
                file=sys.stderr,
            )

    def answered(self, samples: Iterator[Sample]) -> Iterator[bool]:
        """Draw the samples that an earlier run has answers for; whether each of them has a value.

        Raises:
            CommandError: the answers are not of these samples, this bundle and these targets.
        """
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # the process died over it
            self._lines += 1
            yield self._check(line, next(samples, None))
            self._bytes += len(line)
        self._file.truncate(self._bytes)

    def add(self, scored: Scored) -> None:
        """Keep the next answer."""
        line = b"%s %s\n" % (_digest(scored.sample), scored_json(scored).encode())
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise FailedError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._lines += 1
        self._bytes += len(line)
        self._added = True

    def _check(self, line: bytes, sample: Sample | None) -> bool:
        place = f"{self.path} line {self._lines}"
        digest, _, answered = line.partition(b" ")
        try:
            answer: dict[str, Any] = json.loads(answered)
            of = (answer["sample_id"], answer["provider"])
            failed = "error" in answer
            bundle_id = self._bundle_id if failed else answer["bundle_id"]
            targets = self._targets if failed else [one["target"] for one in answer["values"]]
        except (ValueError, TypeError, KeyError) as error:
            raise self._another(f"{place} is no answer of an earlier run") from error
        if sample is None or of != (sample.id, sample.provider):
            now = "there is none" if sample is None else f"it is {sample.id!r}"
            raise self._another(f"{place} is for the sample {of[0]!r} where {now} now")
        if digest != _digest(sample):
            raise self._another(f"{place} is for the sample {of[0]!r} when it had another text")
        if bundle_id != self._bundle_id:
            raise self._another(
                f"{place} is by bundle {bundle_id}, and the values would be by {self._bundle_id} "
                f"now; --bundle {bundle_id} goes on with the former"
            )
        if targets != self._targets:
            raise self._another(f"{place} is for other targets ({', '.join(targets)})")
        return not failed

    def _another(self, fault: str) -> CommandError:
        return CommandError(f"{fault}. Remove {self.path} to start anew")

    def _finish(self) -> None:
        if not self.path.exists() or self.path.stat().st_size != self._bytes:
            raise FailedError(f"{self.path}: another run wrote to it too; remove it to start anew")
        whole = self._out.with_name(self._out.name + ".tmp")
        try:
            with self.path.open("rb") as lines:
                self._write((line.partition(b" ")[2] for line in lines), whole)
        except OSError as error:
            whole.unlink(missing_ok=True)
            raise FailedError(
                f"--out {self._out}: cannot be written ({error.strerror}); {self.path} has the "
                "answers, and the same command tries again"
            ) from error
        whole.replace(self._out)
        self.path.unlink()

    def _write(self, answers: Iterator[bytes], out: Path) -> None:
        suffix = self._out.suffix.lower()
        if suffix == ".jsonl":
            with out.open("wb") as lines:
                lines.writelines(answers)
            return
        if suffix == ".csv":
            write = write_csv
        else:
            from alinfik.client.parquet import write_parquet as write
        write(map(flat_row, answers), columns(self._targets), out)


def _digest(sample: Sample) -> bytes:
    content = sample.SerializeToString(deterministic=True)
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()

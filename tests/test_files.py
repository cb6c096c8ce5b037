"""Locks where there are none, and folders that may not be written."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import pytest
from hydra import compose, initialize_config_dir
from tiny_studies import write_study

from idh_lightning import files
from idh_lightning.cohort.study import SEQUENCES
from idh_lightning.commands.preparing import prepare
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import StorageError, exits_with_message
from idh_lightning.files import locked
from idh_lightning.phantom.cohort import PhantomCohort


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def second_user(folder: Path) -> Iterator[None]:
    """Inside, this process is a user who may read a folder and write nothing in it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_file_system_without_locks_is_told_by_a_file_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path / ".lock", needed=True) as note:
        assert "No locks available" in note
        assert str(tmp_path / ".lock") in caplog.text
        other = filelock.SoftFileLock(tmp_path / ".lock.held")
        with pytest.raises(filelock.Timeout):
            other.acquire(timeout=0.1)
    other.acquire(timeout=1)
    other.release()


def test_a_lock_is_exclusive_and_whoever_waits_is_told_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "PATIENCE_S", 0.1)
    caplog.set_level(logging.INFO)
    inside = threading.Event()

    def second() -> None:
        with locked(tmp_path / ".lock"):
            inside.set()

    with locked(tmp_path / ".lock") as note:
        assert note == ""
        thread = threading.Thread(target=second)
        thread.start()
        assert not inside.wait(0.5)
    assert inside.wait(10)
    thread.join()
    assert f"Waiting for another run, which holds {tmp_path / '.lock'}" in caplog.text


def test_a_lock_that_may_not_be_written_is_gone_without_unless_it_is_needed(shared: Path) -> None:
    with second_user(shared):
        with locked(shared / ".lock") as note:
            assert "going on without a lock" in note
        with pytest.raises(PermissionError), locked(shared / ".lock", needed=True):
            pass


@pytest.fixture
def table(shared: Path) -> Path:
    rows = ["study_id,patient_id,idh," + ",".join(SEQUENCES)]
    for index in range(6):
        study = write_study(shared / "mri", f"P{index}", seed=index, mask=False)
        files = ",".join(str(study.files[name]) for name in SEQUENCES)
        rows.append(f"P{index},P{index},{'mutant' if index % 2 else 'wildtype'},{files}")
    (shared / "cohort.csv").write_text("\n".join(rows))
    return shared / "cohort.csv"


def prepared(table: Path, own: Path, *overrides: str) -> object:
    where = [f"cohort.table={table}", f"paths.store={table.parent}/store", f"paths.run={own}"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return prepare(compose("prepare", ["cohort=table", "name=x", "data.grid=16", *where, *overrides]))


def test_a_second_user_takes_the_volumes_of_a_store_that_only_its_owner_may_write(table: Path) -> None:
    first = prepared(table, table.parent / "first")
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o777)
        with second_user(table.parent):
            report = prepared(table, Path(own) / "run")
    assert (first.built, report.built, report.reused) == (6, 0, 6)  # type: ignore[attr-defined]
    assert "going on without a lock" in report.note  # type: ignore[attr-defined]


def test_a_store_that_must_be_written_and_may_not_is_named_with_a_way_out(table: Path) -> None:
    prepared(table, table.parent / "first")
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o777)
        (table.parent / "mri" / "P3" / "P3_T1.nii.gz").write_bytes(
            (table.parent / "mri" / "P4" / "P4_T1.nii.gz").read_bytes()
        )
        with second_user(table.parent), pytest.raises(StorageError, match=r"store/.* may not be written by this user"):
            prepared(table, Path(own) / "run")
        with second_user(table.parent):
            prepared(table, Path(own) / "run", f"paths.store={own}/store", "cohort.on_error=exclude")


def test_a_synthetic_cohort_that_is_there_needs_no_lock(shared: Path) -> None:
    PhantomCohort(shared / "data", patients=10, spacing_mm=6.0, workers=1).read()
    with second_user(shared):
        assert len(PhantomCohort(shared / "data", patients=10, spacing_mm=6.0, workers=1).read().studies) >= 10


def test_a_folder_that_may_not_be_written_ends_with_one_message(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @exits_with_message
    def main() -> None:
        files.write_text(shared / "outputs" / "metrics.json", "{}")

    with second_user(shared), pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert f"{shared / 'outputs'}: may not be written by this user" in said
    assert f"chmod g+w {shared}" in said


@pytest.mark.parametrize(
    "command", ["train cohort=phantom", "train -m seed=0,1", "prepare", "evaluate checkpoint=x", "report runs=[a,b]"]
)
def test_a_working_folder_that_may_not_be_written_ends_before_anything_with_one_message(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be, which stops root as well")
    module, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"idh_lightning.{module}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "UserWarning" not in done.stderr
    assert f"{tmp_path / 'outputs'}: " in done.stderr
    assert "hydra.run.dir" in done.stderr or "hydra.sweep.dir" in done.stderr

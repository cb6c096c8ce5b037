"""The volume store: whole entries or none, whoever writes, whenever it is killed."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from tiny_studies import write_study

from idh_lightning.cohort.study import SEQUENCES, Study
from idh_lightning.errors import VolumeError
from idh_lightning.volumes import Preprocessing, VolumeStore
from idh_lightning.volumes import store as store_module
from idh_lightning.volumes.extraction import EXTRACTION

SIZE = (40, 48, 38)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return [write_study(folder, f"study-{index}", seed=index) for index in range(4)]


def open_store(folder, grid=16, sequences=SEQUENCES, **settings):
    return VolumeStore(folder, Preprocessing(grid, **settings), sequences)


def contents(folder):
    """Return {relative path: bytes} of everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def entry(store, study):
    return store.folder / store.open(study).key


def test_an_entry_holds_what_preprocessing_made(tmp_path, studies):
    store = open_store(tmp_path)
    report = store.prepare(studies, workers=1)
    assert (report.built, report.reused, report.faults) == (4, 0, ())
    assert report.elapsed_s > 0
    for study in studies:
        stored, volume = store.open(study), Preprocessing(16)(study)
        assert stored.study_id == study.study_id
        assert isinstance(stored.image, np.memmap)
        assert stored.image.dtype == np.float16
        assert np.array_equal(stored.image, volume.image.astype(np.float16))
        assert np.array_equal(stored.mask, volume.mask)
        assert np.array_equal(stored.brain, volume.brain)
        assert np.array_equal(stored.presence, volume.presence)
        assert np.array_equal(stored.affine, volume.affine)
        assert np.array_equal(stored.affine_ras, np.diag([-1, -1, 1, 1]) @ volume.affine)
        assert stored.geometry == volume.native


def test_two_studies_of_one_name_are_refused(tmp_path, studies):
    with pytest.raises(VolumeError, match="several studies are called study-0; expected a name"):
        open_store(tmp_path).prepare([*studies, studies[0]])


def test_a_study_without_mask_or_with_a_missing_sequence_can_be_stored(tmp_path):
    study = write_study(tmp_path, mask=False, sequences=("FLAIR", "T1"))
    store = open_store(tmp_path / "store", missing="zero")
    store.prepare([study], workers=1)
    stored = store.open(study)
    assert stored.mask is None
    assert stored.presence.tolist() == [1, 1, 0, 0]


def test_the_second_preparation_decodes_nothing_and_gives_the_same_warnings(
    tmp_path, studies, monkeypatch, brains_at_once
):
    skull = write_study(tmp_path, "skull", size=(50, 58, 44), skull=True)
    store = open_store(tmp_path / "store")
    first = store.prepare([*studies, skull], workers=1)
    assert [fault.check for fault in first.faults] == ["skull_not_stripped"]
    assert store.open(skull).key == f"{store.key(skull)}_{EXTRACTION}"
    assert [store.open(study).key for study in studies] == [store.key(study) for study in studies]
    monkeypatch.setattr(Preprocessing, "__call__", lambda *_: pytest.fail("decoded a study again"))
    second = open_store(tmp_path / "store").prepare([*studies, skull], workers=1)
    assert (second.built, second.reused) == (0, 5)
    assert second.faults == first.faults
    fresh = open_store(tmp_path / "store")
    assert fresh.open(skull).found == store.open(skull).found
    assert fresh.open(skull).found.extracted


def test_entries_are_the_same_bytes_whoever_makes_them(tmp_path, studies):
    open_store(tmp_path / "one").prepare(studies, workers=1)
    open_store(tmp_path / "two").prepare(studies[::-1], workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_settings_sequences_or_contents_make_another_entry(tmp_path, studies):
    study = studies[0]
    same = open_store(tmp_path).key(study)
    assert open_store(tmp_path).key(study) == same
    assert open_store(tmp_path, grid=[16, 16, 16]).key(study) == same
    assert open_store(tmp_path, grid=17).key(study) != same
    assert open_store(tmp_path, crop="none").key(study) != same
    assert open_store(tmp_path, margin_mm=9.0).key(study) != same
    assert open_store(tmp_path, sequences=SEQUENCES[:3]).key(study) != same
    assert open_store(tmp_path, sequences=SEQUENCES[::-1]).key(study) != same
    copy = write_study(tmp_path, study.study_id, seed=77)
    assert open_store(tmp_path).key(copy) != same


def test_the_label_and_the_folder_of_the_files_are_no_part_of_the_key(tmp_path, studies):
    study = studies[1]
    moved = {name: shutil.copy(path, tmp_path) for name, path in study.files.items()}
    other = type(study)(
        study_id=study.study_id,
        patient_id="another",
        label=0,
        files={name: Path(path) for name, path in moved.items()},
        mask=Path(shutil.copy(study.mask, tmp_path)),
    )
    assert open_store(tmp_path).key(other) == open_store(tmp_path).key(study)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-1]),
        lambda folder: (folder / "mask.npy").unlink(),
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").write_text("[]"),
        lambda folder: (folder / "entry.json").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
    ids=["short image", "no mask", "half a description", "another description", "no description", "no entry"],
)
def test_damage_is_noticed_on_opening_and_mended_by_the_next_preparation(tmp_path, studies, damage):
    store = open_store(tmp_path)
    store.prepare(studies, workers=1)
    whole = contents(tmp_path)
    damage(entry(store, studies[2]))
    with pytest.raises(VolumeError, match=r"study study-2: .*Prepare the cohort \(again\)"):
        store.open(studies[2])
    report = open_store(tmp_path).prepare(studies, workers=1)
    assert (report.built, report.reused, report.faults) == (1, 3, ())
    assert contents(tmp_path) == whole


def test_a_changed_byte_is_noticed_by_the_next_preparation(tmp_path, studies, caplog):
    store = open_store(tmp_path)
    store.prepare(studies, workers=1)
    whole = contents(tmp_path)
    path = entry(store, studies[0]) / "image.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))
    assert open_store(tmp_path).prepare(studies, workers=1).built == 1
    assert "another checksum" in caplog.text
    assert contents(tmp_path) == whole


def test_an_open_study_survives_the_mending_of_its_entry(tmp_path, studies):
    store = open_store(tmp_path)
    store.prepare(studies, workers=1)
    stored = store.open(studies[0])
    before = stored.image.copy()
    (entry(store, studies[0]) / "mask.npy").unlink()
    open_store(tmp_path).prepare(studies, workers=1)
    assert np.array_equal(stored.image, before)


def test_a_store_can_be_sent_to_another_process(tmp_path, studies):
    store = open_store(tmp_path)
    store.prepare(studies, workers=1)
    other = pickle.loads(pickle.dumps(store))
    assert np.array_equal(other.open(studies[3]).image, store.open(studies[3]).image)


def test_opening_takes_milliseconds(tmp_path, studies):
    store = open_store(tmp_path, grid=64)
    store.prepare(studies[:1], workers=1)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        np.asarray(store.open(studies[0]).image).sum(dtype=np.float32)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, studies, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 10**6))
    store = open_store(tmp_path, grid=128)
    assert store.entry_bytes > 128**3 * 10
    with pytest.raises(VolumeError, match=r"4 prepared studies need 0\.1 GB; found 0\.0 GB free"):
        store.prepare(studies, workers=1)
    assert contents(tmp_path) == {}


def test_a_disk_that_fills_up_meanwhile_stops_with_a_clear_error(tmp_path, studies, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.np, "save", full)
    store = open_store(tmp_path)
    with pytest.raises(VolumeError, match="the disk is full"):
        store.prepare(studies, workers=1)
    assert contents(tmp_path) == {}


def test_an_unexpected_failure_becomes_a_fault_of_the_study(tmp_path, studies, monkeypatch):
    real = Preprocessing.__call__

    def sometimes(self, study, sequences):
        if study.study_id == "study-1":
            raise MemoryError("too much")
        return real(self, study, sequences)

    monkeypatch.setattr(Preprocessing, "__call__", sometimes)
    report = open_store(tmp_path).prepare(studies, workers=1)
    assert report.built == 3
    assert [(fault.study_id, fault.check) for fault in report.faults] == [("study-1", "unreadable_study")]
    assert "MemoryError (too much)" in report.faults[0].found


def test_an_empty_cohort_is_prepared_at_once(tmp_path):
    report = open_store(tmp_path).prepare([])
    assert (report.built, report.reused, report.faults) == (0, 0, ())


# Several processes, and kill -9 --------------------------------------------------------------------------------------


def test_faults_come_in_the_order_of_the_studies_from_several_processes(tmp_path):
    found = [write_study(tmp_path, f"study-{index}", sequences=("FLAIR",)) for index in range(6)]
    report = open_store(tmp_path / "store").prepare(found, workers=3)
    assert [fault.study_id for fault in report.faults] == [study.study_id for study in found]
    assert {fault.check for fault in report.faults} == {"missing_sequence"}
    assert report.built == 0


PROGRAM = """
    import sys
    from pathlib import Path
    from idh_lightning.cohort.study import SEQUENCES, Study
    from idh_lightning.volumes import Preprocessing, VolumeStore
    folder, store, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    studies = [
        Study(
            study_id=path.name, patient_id=path.name, label=1,
            files={name: path / f"{path.name}_{name}.nii.gz" for name in SEQUENCES},
            mask=path / f"{path.name}_seg.nii.gz",
        )
        for path in sorted(folder.iterdir())
    ]
    report = VolumeStore(store, Preprocessing(48), SEQUENCES).prepare(studies, workers=workers)
    print("REPORT", report.built, report.reused, len(report.faults))
"""


def start(cohort, store, workers=1):
    program = textwrap.dedent(PROGRAM)
    command = [sys.executable, "-c", program, str(cohort), str(store), str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def counts(process):
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return [int(number) for number in output.split("REPORT")[1].split()]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger")
    for index in range(12):
        write_study(folder, f"study-{index:02d}", seed=index)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cohort):
    """Return the contents of the store that one undisturbed process makes."""
    folder = tmp_path_factory.mktemp("whole")
    found = [
        Study(
            study_id=path.name,
            patient_id=path.name,
            label=1,
            files={name: path / f"{path.name}_{name}.nii.gz" for name in SEQUENCES},
            mask=path / f"{path.name}_seg.nii.gz",
        )
        for path in sorted(cohort.iterdir())
    ]
    open_store(folder, grid=48).prepare(found, workers=1)
    return contents(folder)


@pytest.mark.slow
def test_a_killed_preparation_is_resumed_to_the_same_store(tmp_path, cohort, whole):
    broken = tmp_path / "broken"
    process = start(cohort, broken)
    deadline = time.monotonic() + 60
    while len(list(broken.glob("*/[0-9a-f]*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # Whatever it was writing when it was killed, the next one finds: a folder of a process that is gone.
    folder = next(broken.iterdir())
    stale = folder / f".partial-{os.uname().nodename}-{process.pid}-0123456789abcdef"
    stale.mkdir()
    (stale / "image.npy").write_bytes(b"half an image")
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9a-f]*")}
    assert 3 <= len(finished) < 12

    built, reused, faults = counts(start(cohort, broken))
    assert (built, reused, faults) == (12 - len(finished), len(finished), 0)
    assert contents(broken) == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished


@pytest.mark.slow
def test_two_processes_preparing_one_cohort_do_not_disturb_each_other(tmp_path, cohort, whole):
    shared = tmp_path / "shared"
    both = [start(cohort, shared), start(cohort, shared)]
    for process in both:
        built, reused, faults = counts(process)
        assert built + reused == 12
        assert faults == 0
    assert contents(shared) == whole


def test_the_copy_of_the_slower_process_is_dropped(tmp_path, studies, monkeypatch):
    store = open_store(tmp_path)
    write = VolumeStore._write

    def overtaken(self, key, study_id, volume):
        write(self, key, study_id, volume)  # another process finishes first
        inode = (self.folder / key / "image.npy").stat().st_ino
        made = write(self, key, study_id, volume)
        assert (self.folder / key / "image.npy").stat().st_ino == inode
        return made

    monkeypatch.setattr(VolumeStore, "_write", overtaken)
    assert store.prepare(studies[:1], workers=1).built == 1
    assert not list(store.folder.glob(".partial*"))


def test_the_unfinished_work_of_a_living_process_is_left_alone(tmp_path, studies):
    store = open_store(tmp_path)
    store.folder.mkdir(parents=True)
    host = os.uname().nodename
    mine = store.folder / f".partial-{host}-{os.getpid()}-aa"
    elsewhere = store.folder / ".partial-another-machine-1-bb"
    forgotten = store.folder / ".partial-another-machine-1-cc"
    for folder in (mine, elsewhere, forgotten):
        folder.mkdir()
    os.utime(forgotten, (0, 0))
    store.prepare(studies[:1], workers=1)
    assert mine.exists()
    assert elsewhere.exists()
    assert not forgotten.exists()


def test_an_entry_says_what_it_is(tmp_path, studies):
    store = open_store(tmp_path)
    store.prepare(studies[:1], workers=1)
    written = json.loads((entry(store, studies[0]) / "entry.json").read_text())
    assert written["study_id"] == "study-0"
    assert written["settings"]["grid"] == [16, 16, 16]
    assert written["sequences"] == list(SEQUENCES)
    assert store.folder.name.startswith("16x16x16_brain_")


def test_nothing_to_prepare_shows_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert VolumeStore(tmp_path, Preprocessing(48), SEQUENCES).prepare([]).built == 0
    assert "Preparing volumes" not in capsys.readouterr().out

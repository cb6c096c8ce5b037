"""Worker processes: they need no room in /dev/shm, and one that dies ends the run with the reason."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from idh_lightning.data.workers import begin_worker
from idh_lightning.errors import WorkerError, exits_with_message

VOLUME = (4, 48, 48, 48)


class Studies(Dataset[torch.Tensor]):
    """Volumes of 1.7 MB, with something that happens in the worker before one is there."""

    def __init__(self, before: Callable[[int], None] = lambda index: None) -> None:
        self.before = before

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        self.before(index)
        return torch.full(VOLUME, float(index)).permute(0, 3, 2, 1)


def load(before: Callable[[int], None] = lambda index: None) -> list[torch.Tensor]:
    # collate_fn takes what the worker made as it is, as TorchIO's queue does.
    loader = DataLoader(Studies(before), num_workers=2, collate_fn=lambda made: made[0], worker_init_fn=begin_worker)
    return list(loader)


def test_a_tensor_arrives_through_a_file_as_it_was_made() -> None:
    for index, volume in enumerate(load()):
        assert volume.stride() == Studies()[index].stride()
        assert torch.equal(volume, Studies()[index])
        volume += 1  # nobody else's


def test_tensors_without_voxels_and_single_numbers_arrive_too() -> None:
    made = [torch.zeros(0, 3), torch.tensor(7), torch.tensor([True, False])]
    loader = DataLoader(range(1), num_workers=1, collate_fn=lambda _: made, worker_init_fn=begin_worker)  # type: ignore[arg-type]
    (received,) = loader
    assert all(torch.equal(one, other) for one, other in zip(received, made, strict=True))


SMALL_SHM = "mount -t tmpfs -o size=1m tmpfs /dev/shm"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", SMALL_SHM], check=False).returncode,
    reason="a small /dev/shm needs unshare and the right to mount",
)
def test_workers_send_more_than_dev_shm_can_hold() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_workers; "
    code += "print(len(test_workers.load()))"
    command = f"{SMALL_SHM} && exec {sys.executable} -c '{code.replace(chr(39), chr(34))}'"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.strip() == "6", done.stderr


def killed(index: int) -> None:
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def without_disk(index: int) -> None:
    if index == 3:
        import tempfile

        tempfile.tempdir = "/nowhere"  # what the worker made cannot be written


@pytest.mark.parametrize("before", [killed, without_disk])
def test_a_worker_that_cannot_go_on_ends_the_run_with_one_message(
    before: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    @exits_with_message
    def main() -> None:
        load(before)

    began = time.monotonic()
    with pytest.raises(SystemExit, match="2"):
        main()
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err
    assert "WorkerError: DataLoader worker (pid" in said
    assert "data.batches.workers=0" in said


@pytest.mark.slow
def test_a_killed_worker_ends_the_writing_of_a_synthetic_cohort(tmp_path: Path) -> None:
    code = f"""
        from idh_lightning.errors import exits_with_message
        from idh_lightning.phantom.cohort import PhantomCohort

        @exits_with_message
        def main():
            PhantomCohort({str(tmp_path)!r}, patients=200, workers=2).read()

        if __name__ == "__main__":
            main()
    """
    script = tmp_path / "write.py"
    script.write_text(textwrap.dedent(code))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.partial/*_nifti")) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [one for one in psutil.Process(process.pid).children(recursive=True) if "loky" in " ".join(one.cmdline())]
    workers[-1].kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2, said
    assert "WorkerError" in said
    assert "cohort.workers=1" in said


def test_other_errors_are_not_taken_for_a_dead_worker() -> None:
    assert WorkerError.of(RuntimeError("Caught ValueError in DataLoader worker process 0.")) is None
    gone = (
        "[pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:5: Connection reset by peer"
    )
    assert "trainer.devices=1" in str(WorkerError.of(RuntimeError(gone)))
    assert WorkerError.of(RuntimeError("Connection reset by peer")) is None, "of a tracker, say"

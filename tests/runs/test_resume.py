"""Runs that end before their time: stopped, killed, out of disk; and what `--resume` and `--rerun` make of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from same_process import run_here

from idh_lightning.callbacks import CurveLogger, WholeCheckpointIO
from idh_lightning.cli import signals as stopping
from idh_lightning.errors import CheckpointError, ConfigError, Stopped, StorageError, exits_with_message
from idh_lightning.runs import state as runstate
from idh_lightning.runs.last_checkpoint import read_last, repoint_checkpoint_paths
from idh_lightning.runs.resuming import RunFolder, expanded, made_anew
from idh_lightning.runs.state import (
    RunState,
    claimed,
    copy_training_state,
    started_in,
    weights_of,
)
from idh_lightning.train import command as train_command

SMALL = [
    "model=efficientnet_b0",
    "model.weights=none",
    "cohort.patients=40",
    "cohort.spacing_mm=4",
    "data.grid=[25,33,25]",  # as the default, odd edges that differ
    "split.validation=0.25",
    "split.test=0.25",
    "trainer.max_epochs=20",
    "callbacks.early_stopping.patience=19",
    "callbacks.explanations.every_epochs=0",
    "optimizer.lr=3e-4",
    "evaluation.bootstrap=100",
]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "idh_lightning.train", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def train(folder: Path, *arguments: str) -> str:
    """Train in this process, where nothing stops it."""
    done = run_here(train_command, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def end_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=900)[0]


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, end_of(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def epochs_in(run: Path) -> int:
    file = run / "metrics.csv"
    return int(pd.read_csv(file)["epoch"].max()) if file.is_file() else -1


def weights(run: Path) -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed run, outputs/whole."""
    folder = tmp_path_factory.mktemp("workplace")
    began = time.monotonic()
    process = start(folder, *SMALL, "hydra.run.dir=outputs/whole")
    assert "report.html" in end_of(process)
    (folder / "seconds").write_text(str(time.monotonic() - began))
    return folder


@pytest.mark.slow
def test_a_run_that_is_stopped_and_then_killed_while_training_ends_with_the_same_predictions(workplace: Path) -> None:
    run, whole = workplace / "outputs" / "ended", workplace / "outputs" / "whole"
    process = start(workplace, *SMALL, "hydra.run.dir=outputs/ended")
    wait_for(lambda: epochs_in(run) >= 1, process)
    process.send_signal(signal.SIGTERM)
    said = end_of(process)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.count("Stopped by SIGTERM") == 1
    assert "Traceback" not in said
    last = run / "checkpoints" / "last.ckpt"
    written = last.stat().st_mtime_ns
    process = start(workplace, "--resume", "outputs/ended")
    wait_for(lambda: not last.exists() or last.stat().st_mtime_ns != written, process)
    process.kill()
    assert "Going on from" in end_of(process)
    assert not (run / "predictions.csv").exists()
    assert "Going on from" in train(workplace, "--resume", "outputs/ended")
    assert (run / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    mine, theirs = weights(run), weights(whole)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not last.exists(), "a finished training goes nowhere"
    log, expected = (pd.read_csv(place / "metrics.csv")["val/loss"].dropna().tolist() for place in (run, whole))
    assert log == expected


@pytest.mark.slow
def test_a_run_of_two_processes_that_is_stopped_ends_at_once_says_so_once_and_can_go_on(tmp_path: Path) -> None:
    run, two = tmp_path / "run", ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    process = start(tmp_path, *SMALL, *two, "trainer.max_epochs=200", "hydra.run.dir=run")
    wait_for(lambda: epochs_in(run) >= 1, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.count("Stopped by SIGTERM") == 1
    assert "Traceback" not in said
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(run) in " ".join(each.info["cmdline"] or [])]


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them() -> None:
    """Else they hold what they have in memory, and the killed process's output, for minutes."""
    code = (
        "import os, sys, time\n"
        "from joblib import Parallel, delayed\n"
        "from idh_lightning.cli.signals import end_with\n"
        "pool = Parallel(2, 'loky', initializer=end_with, initargs=(os.getpid(),))\n"
        "print(*set(pool(delayed(os.getpid)() for _ in range(8))), flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(number) for number in process.stdout.readline().split()]
    assert workers
    assert all(map(psutil.pid_exists, workers))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, workers)):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Kill at one moment; at more by --kills=N."""
    if "moment" in metafunc.fixturenames:
        kills = metafunc.config.getoption("--kills")
        metafunc.parametrize("moment", np.random.default_rng(kills).uniform(size=kills).round(3).tolist())


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_predictions(
    moment: float, workplace: Path, tmp_path: Path
) -> None:
    """Kill between start and end, the writing of cohort, volumes and features included."""
    seconds = float((workplace / "seconds").read_text())
    process = start(tmp_path, *SMALL, "hydra.run.dir=outputs/killed")
    time.sleep(moment * seconds)
    process.kill()
    said = end_of(process)
    again = [*SMALL, "hydra.run.dir=outputs/killed"]
    if (tmp_path / "outputs" / "killed" / ".hydra" / "config.yaml").exists():
        again = ["--resume", "outputs/killed"]
    said += train(tmp_path, *again)
    mine, theirs = tmp_path / "outputs" / "killed", workplace / "outputs" / "whole"
    assert (mine / "report.html").is_file(), said
    for name in ("predictions.csv", "explanations.csv"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), said
    assert not list(mine.rglob(".writing-*"))


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(workplace: Path) -> None:
    whole = workplace / "outputs" / "whole"
    shutil.copytree(whole, workplace / "outputs" / "copy")
    run = workplace / "outputs" / "copy"
    (run / "report.html").unlink()
    (run / "checkpoints" / ".writing-abc.ckpt").write_bytes(b"left by a killed process")
    kept = (".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "explanations.csv")
    before = {name: (run / name).stat().st_mtime_ns for name in kept}
    said = train(workplace, "--resume", "outputs/copy")
    assert (run / "report.html").is_file(), said
    assert "Epoch" not in said
    assert all((run / name).stat().st_mtime_ns == then for name, then in before.items())
    assert not list((run / "checkpoints").glob(".writing-*"))
    assert (run / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_a_rerun_gives_the_same_predictions_in_a_new_folder(workplace: Path) -> None:
    said = train(workplace, "--rerun", "outputs/whole", "hydra.run.dir=outputs/again")
    again = workplace / "outputs" / "again" / "predictions.csv"
    assert again.is_file(), said
    assert "lightning==" in again.with_name("environment.txt").read_text()
    known = [
        json.loads(place.with_name("provenance.json").read_text()) for place in (again, workplace / "outputs/whole/x")
    ]
    assert known[0]["volumes_sha256"] == known[1]["volumes_sha256"]
    assert known[0]["overrides"] == [*known[1]["overrides"]]
    assert again.read_bytes() == (workplace / "outputs" / "whole" / "predictions.csv").read_bytes()


def test_a_stage_is_finished_only_with_all_of_its_files(tmp_path: Path) -> None:
    state = RunState(tmp_path, go_on=False)
    (tmp_path / "predictions.csv").touch()
    state.finish("test")
    assert RunState(tmp_path, go_on=True).is_finished("test")
    (tmp_path / "predictions.csv").unlink()
    assert not RunState(tmp_path, go_on=True).is_finished("test")


def test_what_a_training_goes_on_from_is_removed_once_it_is_finished(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / "checkpoints" / name).touch()
    RunState(tmp_path, go_on=True).finish("fit")
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["best.ckpt"]


def test_a_stage_that_begins_again_takes_the_later_ones_with_it(tmp_path: Path) -> None:
    for name in ("predictions.csv", "metrics.json", "report.html"):
        (tmp_path / name).touch()
    state = RunState(tmp_path, go_on=False)
    state.finish("test")
    state.finish("report")
    state.begin("test")
    assert not RunState(tmp_path, go_on=True).is_finished("report")


def test_a_run_that_does_not_go_on_forgets_what_was_finished(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").touch()
    RunState(tmp_path, go_on=False).finish("test")
    RunState(tmp_path, go_on=False)
    assert not RunState(tmp_path, go_on=True).is_finished("test")


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path: Path) -> None:
    import resource

    place = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, place)
    before = place.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"last.ckpt: the disk is full.*--resume"):
            WholeCheckpointIO().save_checkpoint({"weights": torch.zeros(1_000_000)}, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert place.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_anywhere_ends_with_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_with_message
    def main() -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x")

    with pytest.raises(SystemExit, match="2"):
        main()
    assert "the disk is full" in capsys.readouterr().err


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk() -> None:
    assert StorageError.of(OSError(errno.EACCES, "Permission denied")) is None
    assert StorageError.of(RuntimeError("shape mismatch"), Path("x")) is None


def test_a_signal_stops_with_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_with_message
    @exits_with_message  # as a job of Hydra is within a command
    def main() -> None:
        with stopping.stops_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert capsys.readouterr().err.count("--resume") == 1
    with pytest.raises(Stopped):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_counts_though_what_it_cut_short_fails_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_with_message
    def main() -> None:
        try:
            raise Stopped(signal.SIGTERM)
        finally:
            raise RuntimeError("unexpected position in the file")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 143
    assert "Stopped by SIGTERM" in capsys.readouterr().err


def interrupted() -> None:
    with stopping.stops_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_curves_go_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    def logged(steps: Sequence[int], kept: int | None = None) -> pd.DataFrame:
        curves = CurveLogger(folder=str(tmp_path))
        if kept is not None:
            curves.keep(kept)
        for step in steps:
            curves.log_metrics({"loss": 10.0 - step, **({"lr": 1.0} if step == 4 else {})}, step)
            curves.save()
        return pd.read_csv(tmp_path / "metrics.csv")

    logged(range(6))
    assert list(logged([4, 5, 6], kept=4)["step"]) == [0, 1, 2, 3, 4, 5, 6]
    assert list(logged([0])["step"]) == [0]


def checkpoint(folder: Path, **recipe: Any) -> Path:
    place = folder / "checkpoints"
    place.mkdir(parents=True)
    best = str(place / "best.ckpt")
    states = {"best": {"dirpath": str(place), "best_model_path": best, "best_k_models": {best: 0.7}}}
    torch.save({"recipe": recipe, "callbacks": states}, place / "last.ckpt")
    (place / "best.ckpt").write_bytes(b"best")
    return place / "last.ckpt"


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    last = checkpoint(tmp_path, seed=0, model={"drop_rate": 0.3})
    assert read_last(last, {"seed": 0, "model": {"drop_rate": 0.3}})
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        read_last(last, {"seed": 1, "model": {"drop_rate": 0.3}})
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_last(last, {})


def test_a_run_that_was_taken_over_remembers_the_best_checkpoint_beside_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "old", seed=0)
    copy_training_state(tmp_path / "old", tmp_path / "new")
    last = tmp_path / "new" / "checkpoints" / "last.ckpt"
    repoint_checkpoint_paths(last, read_last(last, {}))
    state = torch.load(last, weights_only=True)["callbacks"]["best"]
    assert state["best_model_path"] == str(tmp_path / "new" / "checkpoints" / "best.ckpt")
    assert state["best_k_models"] == {state["best_model_path"]: 0.7}
    assert weights_of(tmp_path / "old") is None
    assert weights_of(last) is None


def test_of_a_finished_run_the_weights_are_trained_on_and_of_no_run_nothing(tmp_path: Path) -> None:
    last = checkpoint(tmp_path / "old", seed=0)
    best = last.with_name("best.ckpt")
    assert weights_of(best) == best
    RunState(tmp_path / "old", go_on=True).finish("fit")
    assert not last.exists()
    assert weights_of(tmp_path / "old") == best
    with pytest.raises(CheckpointError, match="holds no training to go on with and no weights"):
        weights_of(tmp_path / "nothing")


def test_a_folder_in_which_a_run_is_going_on_is_refused_until_its_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from idh_lightning.runs.state import claimed\n"
        "with claimed(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    monkeypatch.setattr(runstate, "CLAIM_PATIENCE_S", 0.2)
    try:
        with pytest.raises(ConfigError, match=rf"a run is going on there .*{process.pid}"), claimed(tmp_path):
            pass
        with pytest.raises(SystemExit, match="2"):
            claim(tmp_path)
        assert f"a run is going on there (process {process.pid}" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()
    with claimed(tmp_path), claimed(tmp_path):
        pass


def test_two_runs_of_one_second_get_a_folder_each(tmp_path: Path) -> None:
    made = [made_anew(tmp_path / "12-00-00_phantom") for _ in range(3)]
    assert [place.name for place in made] == ["12-00-00_phantom", "12-00-00_phantom_2", "12-00-00_phantom_3"]


def claim(folder: Path, *task: str, command: str = "train") -> Any:
    """Return what the configuration becomes where a command is started in a folder."""
    from hydra import compose, initialize_config_dir

    from idh_lightning.config.checks import CONF_DIR

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        given = [*task, f"hydra.run.dir={folder}"]
        config = compose(command, overrides=given, return_hydra_config=True)
    RunFolder().on_run_start(config, config_name=command)
    return config


def recorded(folder: Path, *task: str, finished: bool = True) -> dict[Path, bytes]:
    """Write the recipe and the best checkpoint of a run, and return what is in its folder."""
    from omegaconf import OmegaConf

    config = {key: value for key, value in claim(folder, *task)._content.items() if key != "hydra"}
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {one}\n" for one in task))
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "best.ckpt").touch()
    if finished:
        RunState(folder, go_on=True).finish("fit")
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_is_not_gone_on_with_by_another_recipe_and_the_way_on_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    run = tmp_path / "run"
    before = recorded(run, "seed=3", finished=finished)
    with pytest.raises(SystemExit, match="2"):
        claim(run, "seed=3", "trainer.max_epochs=7", "checkpoint=last")
    start = run if finished else run / "checkpoints" / "best.ckpt"
    said = capsys.readouterr().err
    assert "trainer.max_epochs was 3, is 7" in said
    assert f"python -m idh_lightning.train seed=3 trainer.max_epochs=7 checkpoint={start}\n" in said
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_recipe_of_a_run_says_nothing_of_how_many_processes_compute_it(tmp_path: Path) -> None:
    recorded(tmp_path, "seed=3", finished=False)
    processes = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    assert claim(tmp_path, "seed=3", *processes, "checkpoint=last").hydra.output_subdir == ".hydra/later"


def test_the_recipe_of_a_finished_run_is_never_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path, "seed=3")
    for task in (["checkpoint=last"], ["stages=[explain,report]", "explanation.studies=4"]):
        assert claim(tmp_path, "seed=3", *task).hydra.output_subdir == ".hydra/later"
    for command, task in (("train", ["seed=3"]), ("evaluate", ["checkpoint=x", "cohort.table=y"])):
        with pytest.raises(SystemExit, match="2"):
            claim(tmp_path, *task, command=command)
        assert "holds a finished run; expected an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--resume", "--rerun"])
@pytest.mark.parametrize("config", ["", "name: prepare\n", "checkpoint: null\nstages: [fit]\n"])
def test_a_folder_of_another_command_or_of_a_start_that_was_cut_off_is_no_run_to_go_on_with(
    option: str, config: str, tmp_path: Path
) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(config)
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- no_such.key=1\n")
    with pytest.raises(ConfigError, match=f"{option} {tmp_path}: (holds no training|what it was started with fits no)"):
        expanded([option, str(tmp_path)])


def test_a_run_that_was_cut_off_before_its_first_epoch_begins_with_its_weights_again(tmp_path: Path) -> None:
    recorded(tmp_path / "run", "checkpoint=elsewhere", finished=False)
    again = ["checkpoint=elsewhere", f"hydra.run.dir='{tmp_path / 'run'}'"]
    assert expanded(["--resume", str(tmp_path / "run")]) == again
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    assert expanded(["--resume", str(tmp_path / "run")]) == [*again, "checkpoint=last"]


def test_relative_paths_of_a_run_count_from_where_it_was_started_or_moved_to(tmp_path: Path) -> None:
    run = tmp_path / "there" / "outputs" / "run"
    (run / ".hydra").mkdir(parents=True)

    def started(folder: Path) -> None:
        runtime = {"cwd": str(folder), "output_dir": str(folder / "outputs" / "run")}
        (run / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": runtime}}))

    started(tmp_path / "there")
    assert started_in(run) == tmp_path / "there"
    started(tmp_path / "gone")
    assert started_in(run) == tmp_path / "there", "the folder was moved as a whole"
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    with pytest.raises(CheckpointError, match=r"started in .*gone, which is not there"):
        started_in(alone)
    (tmp_path / "gone").mkdir()
    assert started_in(alone) == tmp_path / "gone"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        expanded(["--resume", str(tmp_path)])
    assert expanded(["seed=1", "-m"]) == ["seed=1", "-m"]


def test_a_run_whose_configuration_files_have_changed_is_not_repeated_silently(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from idh_lightning.config.checks import CONF_DIR

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=["seed=3"])
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- seed=3\n")
    OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
    assert expanded(["--rerun", str(tmp_path), "stages=[fit]"]) == ["seed=3", "stages=[fit]"]
    assert expanded([f"--resume={tmp_path}"]) == ["seed=3", f"hydra.run.dir='{tmp_path}'", "checkpoint=last"]
    assert expanded(["--rerun", str(tmp_path), "seed=4"]) == ["seed=4"]
    config.optimizer.lr = 0.5
    OmegaConf.save(config, tmp_path / ".hydra" / "config.yaml")
    with pytest.raises(ConfigError, match=r"optimizer.lr was 0.5, is 3e-05"):
        expanded(["--rerun", str(tmp_path)])

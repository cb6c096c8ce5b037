"""What users type wrongly: one message with the way on, exit status 2, and nothing prepared before it."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from idh_lightning.cli.entry import _refuse_unknown_options, composed, entry
from idh_lightning.config.checks import CONF_DIR, near_keys
from idh_lightning.config.comments import documented_settings, opening_lines
from idh_lightning.errors import ConfigError

Refused = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line in an empty folder, and returns what it says; it must end with status 2 and no traceback."""

    def run(line: str) -> str:
        name, *arguments = shlex.split(line)
        module = importlib.import_module(f"idh_lightning.{name}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as ended:
            getattr(module, "command", module.main)()
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert "Traceback" not in said
        assert not (tmp_path / "outputs" / "data").exists(), "nothing is prepared"
        assert os.environ.get("HYDRA_FULL_ERROR") is None
        assert not HydraConfig.initialized(), "a command leaves no run behind in the process that calls it"
        return " ".join(said.split())

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train lr=1e-4", "Did you mean optimizer.lr? Then: python -m idh_lightning.train optimizer.lr=1e-4"),
        ("train +lr=1e-4", "Did you mean 'optimizer.lr'?"),
        ("train epochs=3 seed=1", "Then: python -m idh_lightning.train trainer.max_epochs=3 seed=1"),
        ("train trainer.limit_val_batches=1", "Then: python -m idh_lightning.train +trainer.limit_val_batches=1"),
        ("train cohort=ucsf", "expected one of bids, brats, .* Did you mean cohort=ucsf_pdgm?"),
        ("train cohrt=table", "Then: python -m idh_lightning.train cohort=table"),
        ("train ~callbacks.early_stoping", "'~callbacks.early_stopping'"),
        ("train experiment=low_memori", "experiment: found 'low_memori'; .* Did you mean experiment=low_memory?"),
        ("train -m model=glob(*) lr=1e-4", "Then: python -m idh_lightning.train -m 'model=glob.{3}' optimizer.lr=1e-4"),
        ("predict chekpoint=x", "Then: python -m idh_lightning.predict checkpoint=x"),
        ("predict checkpoint=. input=. +foo=1", "conf/predict.yaml: found the key 'foo'"),
        ("export checkpoint=x fromat=onnx", "Did you mean format?"),
        ("train cohort.columns.T1ce=gd cohort=table", "Did you mean cohort.columns.T1c?"),
        ("train device=cuda", "Then: python -m idh_lightning.train trainer.accelerator=cuda"),
        ("train batch_size=4", "Then: python -m idh_lightning.train data.batches.batch_size=4"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_one_that_is_meant(refused: Refused, line: str, message: str) -> None:
    import re

    said = refused(line)
    assert re.search(message.replace("?", r"\?").replace("~", "~").replace("+", r"\+"), said), said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train cohort.table=t.csv", "Then: python -m idh_lightning.train cohort=table cohort.table=t.csv"),
        ("train split.folds=5", "a setting of split=kfold or split=leave_site_out, and not of the choice made. Add"),
        ("train cohort=table cohort.patients=40", "a setting of cohort=phantom, and not of cohort=table. Leave it out"),
        (
            "train split=given split.test=0.2 split.file=x",
            "split.test: a setting of split=holdout, and not of split=gi",
        ),
        ("train data=on_the_fly data.batches.views=4", "a setting of data=feature_bank, and not of data=on_the_fly."),
    ],
)
def test_a_setting_of_another_choice_is_told_by_that_choice_and_never_mended_to_another_setting(
    refused: Refused, line: str, said: str
) -> None:
    found = refused(line)
    assert said in found
    assert ("Then:" in found) == ("Then:" in said)


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("train lr=1e-4 epochs=3", "Then: python -m idh_lightning.train optimizer.lr=1e-4 trainer.max_epochs=3"),
        ("train epochs=3 cohort=phantm seed=1", "train trainer.max_epochs=3 cohort=phantom seed=1"),
        ("train ~callbacks.early_stoping epochs=3", "train '~callbacks.early_stopping' trainer.max_epochs=3"),
        ("train qqqq=1 epochs=3", "Then, without qqqq=1: python -m idh_lightning.train trainer.max_epochs=3"),
        ("train -m lr=1e-4,1e-3 epochs=3", "train -m optimizer.lr=1e-4,1e-3 trainer.max_epochs=3"),
        ("train -m model=efficientnet_b77,efficientnet_b00", "train -m model=efficientnet_b7,efficientnet_b0"),
        ("train -m cohort=choice(phantm,ucsf)", "train -m cohort=phantom,ucsf_pdgm"),
        ("train -m model=efficientnet_b70,efficientnet_b7 seed=1,2", "train -m model=efficientnet_b7 seed=1,2"),
        ("train -m model=efficientnet_b0,qqqq", "without qqqq: python -m idh_lightning.train -m model=efficientnet_b0"),
    ],
)
def test_the_command_line_that_is_advised_mends_all_that_is_wrong_at_once(
    refused: Refused, line: str, mended: str
) -> None:
    said = refused(line).partition(" (HYDRA_FULL_ERROR")[0]
    assert said.endswith(mended)
    assert said.count("python -m idh_lightning.train ") == 1 + said.count("To see all")
    words = shlex.split(said.rpartition("idh_lightning.train ")[2])
    assert composed("train", [word.split(",")[0] for word in words if word != "-m"])


COMMANDS = ("train", "prepare", "benchmark", "evaluate", "explain", "report", "predict", "export", "phantom")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_the_command_does_in_less_than_a_screen_or_two(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"idh_lightning.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"idh_lightning.{name}.__main__")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    getattr(module, "command", module.main)()
    page = capsys.readouterr().out
    assert page.startswith(f"python -m idh_lightning.{name} ")
    assert len(page.splitlines()) < 60
    assert max(map(len, page.splitlines())) <= 80
    for example in opening_lines(CONF_DIR / f"{name}.yaml")[1:]:
        assert shlex.split(example, comments=True)[:3] == ["python", "-m", f"idh_lightning.{name}"]


@pytest.mark.parametrize("line", ["sweep=optuna", "hydra/launcher=submitit_slurm seed=0,1"])
def test_a_plugin_that_is_not_installed_is_named_with_the_extra_that_has_it(line: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['hydra_plugins'] = None; sys.argv[1:] = {['-m', *line.split()]}"
    code += "; from idh_lightning.train import command; command()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"hydra/(sweeper/optuna|launcher/submitit_slurm): .*pip install 'idh_lightning", done.stderr)
    assert "Available options" not in done.stderr


@pytest.mark.parametrize("group", ["model", "objective", "optimizer", "logger", "augment", "trainer", "experiment"])
def test_a_list_of_choices_names_each_file(group: str) -> None:
    (said,) = (one for one in documented_settings(CONF_DIR / "train.yaml") if one.key == group)
    assert {file.stem for file in (CONF_DIR / group).glob("*.yaml")} <= set(re.findall(r"\w+", said.comment))


@pytest.mark.parametrize(
    ("line", "key", "example"),
    [
        ("train cohort=table", "cohort.table", "python -m idh_lightning.train cohort=table cohort.table="),
        ("train split=given", "split.file", "python -m idh_lightning.train split=given split.file="),
        ("prepare cohort=ucsf_pdgm", "cohort.folder, cohort.table", "cohort.folder=/data/cohort cohort.table="),
        ("explain", "checkpoint", "python -m idh_lightning.explain checkpoint=outputs/"),
        ("export", "checkpoint", "python -m idh_lightning.export checkpoint=outputs/"),
        ("evaluate cohort.table=x.csv", "checkpoint", "cohort.table=x.csv checkpoint=outputs/"),
        ("report", "runs", "python -m idh_lightning.report 'runs=[outputs/"),
    ],
)
def test_what_is_missing_is_named_with_a_command_line(refused: Refused, line: str, key: str, example: str) -> None:
    said = refused(line)
    assert f"{key}: found none; expected a value." in said
    assert example in said


def test_a_missing_checkpoint_is_answered_with_the_newest_run(refused: Refused, tmp_path: Path) -> None:
    for number, day in enumerate(("2026-01-01", "2026-01-02")):
        file = tmp_path / "outputs" / day / "10-00-00_phantom" / "checkpoints" / "best.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (number, number))
    assert "export checkpoint=outputs/2026-01-02/10-00-00_phantom" in refused("export")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train seed=abc", "conf/train.yaml: found seed=abc; expected a whole number"),
        ("train trainer.max_epochs=-3", "found trainer.max_epochs=-3; expected at least 1"),
        ("train data.grid=abc", "expected a whole number or a list"),
        ("train stages=fit", "stages: found fit; expected a list out of pretrain, locate, fit, test, explain, report"),
        ("train seed=0,1", "seed: found several values, 0,1; expected one. For a run with each of them add -m"),
        ("train cohort.table=a=b.csv", "cohort.table: a setting of cohort=table"),
        ("prepare cohort=table cohort.table=x.csv model=efficientnet_b0", "model: prepare makes no such choice"),
        ("train -m sweep=optuna stages=[fit]", "stages: found no test and no report in a search by Optuna"),
        ("train nonsense", "nonsense: found no '=' in it; expected KEY=VALUE"),
        ("train 'paths.run=${nope}'", "Interpolation key 'nope' not found"),
        ("train model.backbone=nonsense", "model.backbone: found 'nonsense'"),
        ("train model.trainable_from=blocks.9", "model.trainable_from: found 'blocks.9'"),
        ("train model.weights=/nowhere", "model.weights: found '/nowhere'"),
        ("train explain=grad_cam explain.layer=nope", "explain.layer: found 'nope'"),
        ("train explanation.methods=[foo]", "methods: found foo"),
        ("train scheduler.pct_start=7", "pct_start"),
        ("train split=kfold fold=9", "fold: found 9 of 5 folds; expected 0 to 4"),
        ("train split=given split.file=/nowhere.csv", "split.file: /nowhere.csv: no such file"),
        ("train stages=[test] checkpoint=/nowhere", "/nowhere: there is no such file; expected a checkpoint"),
        ("train stages=[report]", "predictions.csv: there is no such file"),
        ("train --resume", "--resume: found no folder after it"),
        ("predict checkpoint=.", "python -m idh_lightning.predict checkpoint=. input=/data/new_patient"),
        ("predict", "For example: python -m idh_lightning.predict input=/data/new_patient"),
        ("predict checkpoint=. input=. device=tpu", "device: found tpu; expected auto, cpu, cuda"),
        ("predict checkpoint=. input=. views=-1", "conf/predict.yaml: found views=-1; expected 0 to 1000"),
        ("export checkpoint=/etc/passwd", "/etc/passwd: cannot be used"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_prepared(refused: Refused, line: str, message: str) -> None:
    assert message in refused(line)


@pytest.mark.parametrize(
    "line",
    ["train trainer.accelerator=gpu", "predict checkpoint=. input=. device=cuda", "explain checkpoint=. device=cuda"],
)
def test_a_gpu_that_is_not_there_is_refused_with_the_way_on(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    said = refused(line)
    assert "torch finds no such GPU on this machine" in said
    assert "=auto." in said


def test_options_may_stand_between_overrides(refused: Refused) -> None:
    said = refused("train cohort=table -m seed=0,1")
    assert "cohort.table: found none" in said
    assert "unrecognized arguments" not in said
    assert said.count("ConfigError") == 2, "one for each of the two runs, and none repeated at the end"
    assert sys.argv[1] == "-m", "where Hydra 1.3 takes it as well"


def test_options_may_have_their_value_attached() -> None:
    _refuse_unknown_options("report", ["-cjob", "-iall", "--cfg=job", "runs=x"])
    with pytest.raises(ConfigError, match="-cjbo: report has no such option"):
        _refuse_unknown_options("report", ["-cjbo"])


def test_what_both_runs_of_a_sweep_are_refused_for_is_told_once(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("study_id,patient_id,FLAIR\na,a,a.nii.gz\n")
    said = refused(f"prepare cohort=table cohort.table={tmp_path / 'table.csv'} -m data.missing=zero,error")
    assert said.count("Name the right column") == said.count("As an earlier run: ") == 1


def test_keys_that_end_alike_come_before_those_that_are_spelt_alike() -> None:
    known = ["optimizer.lr", "optimizer.learn", "scheduler.max_lr", "hydra.lr"]
    assert near_keys("lr", known) == ["optimizer.lr"]
    assert near_keys("optimiser.lr", known)[0] == "optimizer.lr"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_composes(name: str) -> None:
    assert composed(name, [])


def interrupted(config: DictConfig) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def speaking(config: DictConfig) -> None:
    for name in ("onnxscript.optimizer", "__main__", "idh_lightning.runs.assembly"):
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)


@pytest.mark.parametrize(
    ("name", "way_on"),
    [("phantom", "the same command"), ("train", "python -m idh_lightning.train --resume {folder}/run")],
)
def test_every_command_that_is_interrupted_names_the_way_on(
    name: str, way_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *(["hydra.run.dir=run"] if name == "train" else [])])
    with pytest.raises(SystemExit, match="130"):
        entry(name, f"{__name__}:interrupted")()
    assert f"go on with {way_on.format(folder=tmp_path)}" in capsys.readouterr().err


def test_of_libraries_only_warnings_are_shown_and_of_this_package_all_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["phantom"])
    entry("phantom", f"{__name__}:speaking")()
    said = "".join(capfd.readouterr())
    assert "info of onnxscript" not in said
    assert "warning of onnxscript" in said
    assert "info of __main__" in said
    assert "info of idh_lightning.runs.assembly" in said

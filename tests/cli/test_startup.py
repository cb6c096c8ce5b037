"""Start-up: what can be said without torch is said without torch, and a new patient waits for no trainer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_studies import write_study

RUN = """
import json, runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as ended:
    code = ended.code
else:
    code = 0
with open(MODULES, "w") as file:
    json.dump({"code": code or 0, "modules": sorted(sys.modules)}, file)
"""
TORCH = ("torch", "pandas", "scipy", "matplotlib", "SimpleITK")
TRAINER = ("lightning.pytorch", "torchmetrics", "torchvision", "wandb", "timm", "captum", "statsmodels", "nilearn")


def loaded(line: str, folder: Path) -> tuple[int, str, set[str]]:
    """Status, message and modules of a command in a process of its own."""
    name, *arguments = line.split()
    told = folder / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN.replace("MODULES", repr(str(told))), f"idh_lightning.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    content = json.loads(told.read_text())
    return content["code"], done.stdout + done.stderr, set(content["modules"])


def within(packages: tuple[str, ...], modules: set[str]) -> set[str]:
    return {package for package in packages if package in modules}


@pytest.mark.parametrize(
    "name", ["train", "prepare", "evaluate", "explain", "report", "predict", "export", "benchmark"]
)
def test_help_comes_without_torch_and_without_what_needs_it(name: str, tmp_path: Path) -> None:
    code, said, modules = loaded(f"{name} --help", tmp_path)
    assert code == 0, said
    assert within(TORCH, modules) == set()
    assert len(modules) < 600


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train lr=1e-4", "Did you mean optimizer.lr?"),
        ("train --hlp", "Did you mean --help?"),
        ("predict --resume=x", "predict has no such option"),
        (f"predict input=. output=a/{'b' * 300}", f"{'b' * 40}... is a name of 300 bytes; expected at most 255"),
        ("predict input=. output=modules.json", "modules.json is a file; expected a folder to write into"),
        ("explain checkpoint=. output=modules.json/x", "modules.json: cannot be written (Not a directory)"),
        ("export checkpoint=. output=modules.json/x.onnx", "modules.json is a file; expected a folder to write into"),
        ("prepare paths.store=modules.json", "paths.store: modules.json: "),
        ("train cohort.folder=modules.json", "cohort.folder: modules.json: "),
        ("train cohort=table cohort.table=/nowhere.csv", "cohort.table: /nowhere.csv: no such file"),
        ("train cohort=brats cohort.folder=/nowhere cohort.table=/no.csv", "cohort.folder: /nowhere: no such folder"),
        ("train checkpoint=/nowhere", "checkpoint: /nowhere: there is no such file"),
        ("prepare cohort=table", "cohort.table: found none"),
        ("evaluate checkpoint=/nowhere cohort.table=/no.csv", "checkpoint: /nowhere: there is no such file"),
        ("explain checkpoint=/nowhere", "checkpoint: /nowhere: there is no such file"),
        ("report runs=[/nowhere]", "runs: /nowhere: there is no such folder"),
        ("predict input=/nowhere", "input: /nowhere: no such folder"),
        ("export checkpoint=/nowhere", "checkpoint: /nowhere: there is no such file"),
    ],
)
def test_a_misspelt_key_and_a_missing_place_are_answered_without_torch(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").touch()  # a file that is in the way
    code, said, modules = loaded(line, tmp_path)
    assert code == 2
    assert message in " ".join(said.split())
    assert within(TORCH, modules) == set()
    assert len(modules) < 700


def test_a_new_patient_waits_for_no_trainer_and_no_tracker(tmp_path: Path) -> None:
    write_study(tmp_path / "new", "patient", seed=100, mask=False)
    code, said, modules = loaded("predict input=new/patient output=out views=0 withhold=false", tmp_path)
    assert code == 0, said
    assert (tmp_path / "out" / "predictions.csv").is_file()
    assert within(TRAINER, modules) == set()
    assert len(modules) < 3500


def test_the_processes_that_write_the_synthetic_cohort_import_no_torch() -> None:
    code = "import sys, idh_lightning.phantom.cohort; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_whoever_imports_what_timm_3d_was_not_given_gets_it() -> None:
    code = """
import sys
from idh_lightning.models.timm3d import timm_3d
assert not {"torchvision", "timm", "wandb"} & set(sys.modules), "stand-ins are forgotten"
network = timm_3d.create_model("efficientnet_b0", num_classes=1)
import timm, torchvision
assert timm.is_model("efficientnet_b0")
assert len(torchvision.ops.nms.__doc__) > 100
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_a_folder_called_dl_does_not_keep_pydicom_from_being_imported(tmp_path: Path) -> None:
    (tmp_path / "dl").mkdir()
    code = (
        "import idh_lightning, nibabel, pydicom, gdcm; print(gdcm.Version.GetVersion()); import dl; print(dl.__path__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(rf"\d+\.\d+\.\d+\n.*{re.escape(str(tmp_path / 'dl'))}.*\n", done.stdout)


@pytest.mark.parametrize("verb", ["preparing", "reporting", "predicting"])
def test_what_trains_nothing_imports_no_trainer(verb: str) -> None:
    code = f"import json, sys, idh_lightning.commands.{verb}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert within(TRAINER, set(json.loads(done.stdout))) == set()


def test_a_faulty_table_is_told_before_a_trainer_is_imported(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("study_id,patient_id,FLAIR\na,a,a.nii.gz\n")
    code, said, modules = loaded("prepare cohort=table cohort.table=table.csv", tmp_path)
    assert code == 2
    assert "no column 'idh'" in said
    assert within(TRAINER, modules) == set()

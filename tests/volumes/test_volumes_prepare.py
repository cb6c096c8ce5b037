"""Preparing a cohort without training: what is written, printed and refused."""

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from tiny_studies import write_study

from idh_lightning.commands.preparing import prepare
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import CohortError, ConfigError, SplitError


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for index in range(16):
        study = write_study(folder, f"P{index:02d}", seed=index)
        files = {name: path.relative_to(folder) for name, path in study.files.items()}
        idh = "mutant" if index % 2 else "wildtype"
        rows.append(
            {"study_id": study.study_id, "patient_id": study.study_id, "idh": idh, "age_years": 40 + index, "sex": "F"}
            | files
            | {"tumor_segmentation": study.mask.relative_to(folder)}
        )
    broken = folder / rows[3]["T2"]
    broken.write_bytes(broken.read_bytes()[:900])
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def configuration(table, folder, *overrides):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(
            "prepare",
            [
                "cohort=table",
                f"cohort.table={table}",
                "name=prepare",
                "data.grid=16",
                f"paths.store={folder / 'store'}",
                f"paths.run={folder / 'run'}",
                *overrides,
            ],
        )


def test_a_faulty_study_stops_the_run_with_one_message_and_the_others_are_prepared(table, tmp_path, capsys):
    with pytest.raises(CohortError, match=r"P03_T2\.nii\.gz, study P03: the file is truncated or damaged") as refused:
        prepare(configuration(table, tmp_path))
    assert str(refused.value).endswith(f"and why: {tmp_path / 'run' / 'cohort_report.html'}")
    assert "truncated" not in capsys.readouterr().out  # what is raised says it
    assert "P03" in (tmp_path / "run" / "cohort_report.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "store").glob("*/[0-9a-f]*"))) == 15


def test_a_faulty_study_is_excluded_with_its_reason_when_asked(table, tmp_path, capsys):
    report = prepare(configuration(table, tmp_path, "cohort.on_error=exclude", "figures=true", "split.test=0.2"))
    assert (report.built, report.reused) == (15, 0)
    excluded = pd.read_csv(tmp_path / "run" / "exclusions.csv")
    assert excluded["study_id"].tolist() == ["P03"]
    assert "truncated" in excluded["reason"][0]
    used = pd.read_csv(tmp_path / "run" / "cohort.csv")
    assert sorted(used["study_id"]) == [f"P{index:02d}" for index in range(16) if index != 3]
    figures = sorted(path.stem for path in (tmp_path / "run" / "figures").iterdir())
    assert figures == sorted(used["study_id"])
    brains = pd.read_csv(tmp_path / "run" / "brains.csv")
    assert sorted(brains["study_id"]) == figures
    assert brains["brain_ml"].between(500, 2300).all()
    assert not brains["extracted"].any()  # made-up heads without a skull
    assert "15 studies of 15 patients are ready, 1 excluded" in capsys.readouterr().out
    again = prepare(configuration(table, tmp_path, "cohort.on_error=exclude"))
    assert (again.built, again.reused) == (0, 15)


def test_training_patients_that_are_not_asked_for_are_listed_as_left_out(table, tmp_path):
    prepare(configuration(table, tmp_path, "cohort.on_error=exclude", "split.test=0.2", "split.training_patients=6"))
    used = pd.read_csv(tmp_path / "run" / "cohort.csv")
    assert (used["split"] == "train").sum() == 6
    excluded = pd.read_csv(tmp_path / "run" / "exclusions.csv").set_index("study_id")["reason"]
    assert sorted([*used["study_id"], *excluded.index]) == [f"P{index:02d}" for index in range(16)]
    assert set(excluded.drop("P03")) == {"not among training patients: split"}


def test_a_cohort_that_cannot_be_split_is_prepared_all_the_same(table, tmp_path, caplog):
    few = pd.read_csv(table).iloc[[0, 1]]
    for name in ("FLAIR", "T1", "T1c", "T2", "tumor_segmentation"):
        few[name] = [str(table.parent / path) for path in few[name]]
    few.to_csv(tmp_path / "few.csv", index=False)
    assert prepare(configuration(tmp_path / "few.csv", tmp_path)).built == 2
    assert "cannot be split" in caplog.text
    assert not (tmp_path / "run" / "cohort.csv").exists()
    assert (tmp_path / "run" / "cohort_report.html").exists()


def test_a_split_by_sites_that_are_not_named_is_refused_before_anything_is_prepared(table, tmp_path):
    with pytest.raises(SplitError, match=r"no column 'site' \(split.site\); found none beside age, sex and files"):
        prepare(configuration(table, tmp_path, "cohort.on_error=exclude", "split=leave_site_out"))
    assert not (tmp_path / "store").exists()
    named = pd.read_csv(table).assign(hospital=["A", "A", "B", "B"] * 4)
    named.to_csv(table.parent / "named.csv", index=False)
    split = ("split=leave_site_out", "split.site=hospital", "split.folds=2", "split.validation=0.3")
    prepare(configuration(table.parent / "named.csv", tmp_path, "cohort.on_error=exclude", *split, "fold=1"))
    used = pd.read_csv(tmp_path / "run" / "cohort.csv")
    assert set(used["hospital"][used["split"] == "test"]) == {"B"}
    assert set(used["hospital"][used["split"] != "test"]) == {"A"}


def test_a_misspelt_key_is_refused_before_anything_is_read(table, tmp_path):
    with pytest.raises(ConfigError, match="margin"):
        prepare(configuration(table, tmp_path, "+data.preprocessing.margin=3"))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("grid", "shape"), [("20", "20x20x20"), ("[16,24,20]", "16x24x20")])
def test_the_grid_is_one_number_or_three(table, tmp_path, grid, shape):
    prepare(configuration(table, tmp_path, "cohort.on_error=exclude", f"data.grid={grid}"))
    assert [path.name.split("_")[0] for path in (tmp_path / "store").iterdir()] == [shape]

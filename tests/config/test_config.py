from __future__ import annotations

import warnings

import pytest
import yaml

from idh_lightning.config.checks import CONF_DIR, _keywords, check_config, dotted_keys
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import CohortError, ConfigError, exits_with_message

CHOICES = {"model": "efficientnet_b7", "cohort": "phantom"}
GOOD: dict[str, object] = {
    "seed": 0,
    "stages": ["fit", "test", "report"],
    "monitor": {"metric": "val/study_auroc", "mode": "max"},
    "objective": {"_target_": "idh_lightning.objectives.FocalLoss", "gamma": 2.0},
}


def test_what_hydra_says_of_itself_is_kept_from_those_who_make_a_section_from_python() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        instantiate_section({"_target_": "idh_lightning.objectives.FocalLoss", "gamma": 1.0})
    assert not told


def test_a_good_configuration_passes() -> None:
    check_config(GOOD, CHOICES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sead": 1}, r"conf/train\.yaml: found the key 'sead'.*Did you mean 'seed'"),
        ({"model": {"_target_": "idh_lightning.models.StemTailNetwork", "wieghts": "none"}},
         r"conf/model/efficientnet_b7\.yaml: found the key 'model\.wieghts'.*Did you mean 'weights'"),
        ({"model": {"_target_": "idh_lightning.models.StemTailNetwork", "tail_precision": "bf16"}},
         r"efficientnet_b7\.yaml: found model\.tail_precision=bf16; expected one of auto, bfloat16, float32"),
        ({"evaluation": {"_target_": "idh_lightning.evaluation.Evaluation", "calibration": "plat"}},
         r"found evaluation\.calibration=plat; expected one of platt, temperature, none"),
        ({"data": {"gird": 64}}, r"found the key 'data\.gird'.*Did you mean 'grid'"),
        ({"objective": {"_target_": "idh_lightning.objectives.Nothing"}}, "cannot be imported"),
        ({"stages": ["fit", "tset"]}, r"stages: found \['fit', 'tset'\]"),
        ({"stages": ["test"]}, "checkpoint: found none while stages has 'test' without 'fit'"),
        ({"control": "sham"}, "control: found 'sham'"),
        ({"monitor": {"metric": "test/study_auroc", "mode": "max"}}, r"monitor\.metric: found 'test/study_auroc'"),
        ({"monitor": {"metric": "val/study_aurok", "mode": "max"}}, r"monitor\.metric: found 'val/study_aurok'"),
        ({"monitor": {"metric": "val/loss", "mode": "max"}}, r"monitor\.mode: found 'max' for val/loss"),
        ({"explain": {"_target_": "idh_lightning.attribution.Evidence"},
          "model": {"_target_": "idh_lightning.models.StemTailNetwork", "locator": None}}, "need a network with a"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_file_and_remedy(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(GOOD | change, CHOICES)


def test_a_control_needs_the_synthetic_cohort() -> None:
    check_config(GOOD | {"control": None}, CHOICES)
    check_config(GOOD | {"control": "shortcut"}, CHOICES | {"cohort": None})  # explain takes the cohort of a run
    with pytest.raises(ConfigError, match="control: found 'null' with cohort=table"):
        check_config(GOOD | {"control": None}, CHOICES | {"cohort": "table"})


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(GOOD | {"sead": 1, "control": "sham"}, CHOICES)
    assert len(str(caught.value).splitlines()) == 2


def test_the_configuration_is_where_the_package_says() -> None:
    assert (CONF_DIR / "train.yaml").is_file()


def test_an_error_of_ours_ends_with_one_message_and_status_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @exits_with_message
    def fails() -> None:
        try:
            raise CohortError("table.csv: nothing in it")
        except CohortError as error:
            raise RuntimeError("wrapped by a library") from error

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as caught:
        fails()
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "CohortError: table.csv: nothing in it" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="wrapped"):
        fails()


def test_an_error_that_is_not_ours_passes_through() -> None:
    @exits_with_message
    def fails() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        fails()


def test_the_kind_of_every_setting_of_this_project_can_be_read() -> None:
    """Else its values are not checked, and nobody hears of it."""
    targets = {
        value
        for file in CONF_DIR.rglob("*.yaml")
        for key, value in dotted_keys(yaml.safe_load(file.read_text())).items()
        if key.endswith("_target_") and str(value).startswith("idh_lightning.")
    }
    unread = {
        f"{target}: {name}"
        for target in targets
        for name, kind in _keywords(target, "", {})[1].items()
        if isinstance(kind, str)
    }
    assert len(targets) > 30
    assert unread == set()

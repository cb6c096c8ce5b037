"""Identifiers, paths and words stay text from the command line, or a file, to what reads them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from idh_lightning.cohort import IDH
from idh_lightning.config.checks import CONF_DIR, check_config
from idh_lightning.config.text import as_text, to_paste
from idh_lightning.errors import ConfigError
from idh_lightning.runs.resuming import expanded


def composed(*arguments: str, name: str = "train") -> Any:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return OmegaConf.to_container(compose(name, overrides=as_text(arguments)), resolve=False)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cohort.exclude=[12_1, 12e3,0012,true,1.0]", ["12_1", "12e3", "0012", "true", "1.0"]),
        ("cohort.exclude=['a b',\"c,d\"]", ["a b", "c,d"]),
        ("cohort.exclude=[]", []),
        ("cohort.exclude=[null,yes]", ["null", "yes"]),
        ("cohort.table=2024", "2024"),
        ("cohort.table=/d\u00e4ta/copy (1)/a=b.csv", "/d\u00e4ta/copy (1)/a=b.csv"),
        ("cohort.columns.idh=IDH status", "IDH status"),
        ("cohort.columns.idh=null", None),
        ("cohort.columns={idh: 1_2, sex: null}", {"idh": "1_2", "sex": None}),
        ("paths.store=2024", "2024"),
        ("checkpoint=1e3", "1e3"),
        ("name=no", "no"),
        ("hydra.run.dir=outputs/1_2", "outputs/1_2"),
    ],
)
def test_what_is_an_identifier_a_path_or_a_word_stays_text(argument: str, value: object) -> None:
    (converted,) = as_text([argument])
    assert OverridesParser.create().parse_override(converted).value() == value
    assert as_text([converted]) == [converted]


def test_what_is_a_number_stays_a_number() -> None:
    arguments = ["seed=3", "trainer.max_epochs=1", "data.grid=[49,65,49]", "-m", "split=kfold", "fold=range(0,5)"]
    assert as_text(arguments) == arguments


def test_a_sweep_over_paths_stays_a_sweep_of_texts() -> None:
    override = OverridesParser.create().parse_override(as_text(["checkpoint=a/b,12_1"])[0])
    assert [str(text) for text in override.sweep_string_iterator()] == ["'a/b'", "'12_1'"]


def test_the_words_of_a_vocabulary_need_no_plus_and_stay_text() -> None:
    config = composed(
        "cohort=table", "cohort.table=x.csv", "cohort.vocabulary={yes: mutant, no: wildtype, 12_1: mutant}",
        'cohort.vocabulary={"n\u00e9gatif, IDH": wildtype}',
    )  # fmt: skip
    labels = IDH.extended(config["cohort"]["vocabulary"])
    assert [labels.label_of(text) for text in ("yes", "No", "12_1", "n\u00e9gatif, IDH")] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "spelling", ["positive", "IDH +", "IDH status: pos", "n\u00e9gatif", 'it\'s "so"', "a,b", "0", "#1 {x}"]
)
def test_a_line_to_paste_says_what_it_was_made_of(spelling: str) -> None:
    argument = shlex.split(to_paste("cohort.vocabulary", {spelling: "mutant"}))
    labels = IDH.extended(composed("cohort=table", *argument)["cohort"]["vocabulary"])
    assert labels.label_of(spelling) == 1
    excluded = composed("cohort=table", *shlex.split(to_paste("cohort.exclude", [spelling, "12_1"])))
    assert excluded["cohort"]["exclude"] == [spelling, "12_1"]


def test_a_run_is_repeated_with_its_identifiers_as_text(tmp_path: Path) -> None:
    recorded = as_text(["cohort=table", "cohort.table=t.csv", "cohort.exclude=[12_1]"])
    (tmp_path / ".hydra").mkdir()
    config = composed(*recorded)
    (tmp_path / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(recorded)))
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    again = expanded(["--rerun", str(tmp_path), "cohort.table=2024"])
    assert composed(*again)["cohort"]["exclude"] == ["12_1"]
    assert composed(*again)["cohort"]["table"] == "2024"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cohort: {exclude: [12_1]}", "found 121 in 'cohort.exclude'"),
        ("cohort: {exclude: [12e3]}", "found 12000.0 in 'cohort.exclude'"),
        ("cohort: {vocabulary: {yes: mutant}}", "found True in 'cohort.vocabulary.True'"),
        ("cohort: {readers: {lgg: {table: 2024}}}", "found 2024 in 'cohort.readers.lgg.table'"),
        ("paths: {store: 2024}", "found 2024 in 'paths.store'"),
    ],
)
def test_a_file_in_which_yaml_takes_text_for_a_number_is_refused_with_the_way_out(text: str, found: str) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.create(text))
    with pytest.raises(ConfigError, match=f"{found}, which is text.*Write it in quotes"):
        check_config(config, {"cohort": "table"})

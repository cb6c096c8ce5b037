"""Sites made alike by ComBat: learnt from training patients, used wherever the site of a study is known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from combatlearn import ComBat
from conftest import FakeStore, studies_of
from omegaconf import OmegaConf
from same_process import run_here
from tiny_checkpoint import SMALL, tiny_cohort, write_checkpoint
from tiny_locator import threshold_locator
from tiny_studies import write_study

from idh_lightning import evaluate, train
from idh_lightning.attribution.studies import volume_tensor
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import SEQUENCES, Cohort, Study
from idh_lightning.config.checks import check_config
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import ConfigError
from idh_lightning.inference import Predictor
from idh_lightning.inference.exported import export
from idh_lightning.models import StemTailNetwork
from idh_lightning.models.radiomics import RadiomicsHead, at_sites, sites_of
from idh_lightning.phantom import PhantomCohort
from idh_lightning.runs.harmonising import LEAST_PATIENTS, combat, require_sites
from idh_lightning.runs.stages import _harmonise
from idh_lightning.volumes import VolumeStore

EACH = 12
T1, T2 = SEQUENCES.index("T1"), SEQUENCES.index("T2")


def at_hospitals(names: str) -> list[Study]:
    """One study for each letter, of either class in turn, carried as being from that hospital."""
    labels = [index % 2 for index in range(len(names))]
    return [
        replace(study, carried={"hospital": name.strip()})
        for study, name in zip(studies_of(labels, "S"), names, strict=True)
    ]


@pytest.fixture
def network(small_network: Callable[..., StemTailNetwork]) -> StemTailNetwork:
    return small_network(sequences=SEQUENCES, locator=threshold_locator(1.5), harmonise="hospital").eval()


def stored(store: FakeStore, studies: list[Study]) -> FakeStore:
    """Store with studies whose T1 is twice as wide and one higher at hospital B, and the first of which has no T2."""
    for index, study in enumerate(studies):
        rng = np.random.default_rng(index)
        image = rng.normal(rng.normal(0, 0.3, (4, 1, 1, 1)), 0.3, (4, 32, 32, 32))
        image[0, 10:20, 10:20, 10 : 18 + index % 3] += 4
        if study.carried["hospital"] == "B":
            image[T1] = 2 * image[T1] + 1
        if index == 0:
            image[T2] = 0
        store.put(study, image)
    return store


def seen(network: StemTailNetwork, store: FakeStore, studies: list[Study]) -> np.ndarray:
    """Radiomic features of studies, [B, 22], as the network reads them."""
    with torch.no_grad():
        entry = network.entry(network.stem(volume_tensor([store.open(study) for study in studies], network)))  # type: ignore[arg-type]
        assert network.radiomics is not None
        return network.radiomics.features(entry.tissue, entry.tumour).numpy()  # type: ignore[arg-type]


def test_features_are_what_combat_makes_of_them_and_those_of_a_missing_sequence_stay(
    network: StemTailNetwork, fake_store: FakeStore
) -> None:
    studies = at_hospitals("A" * EACH + "B" * EACH)
    store = stored(fake_store, studies)
    plain = seen(network, store, studies)
    changes = combat(network, studies, store)  # type: ignore[arg-type]
    assert list(changes) == ["A", "B"]
    network.radiomics.harmonise(changes)  # type: ignore[union-attr]
    assert np.array_equal(seen(network, store, studies), plain), "outside of a context no site is known"
    with at_sites(network, sites_of(network, studies)):
        found = seen(network, store, studies)
    of_t2 = np.arange(16) % 4 == T2
    kept = np.append(~of_t2, np.ones(6, bool))
    table = pd.DataFrame(plain[:, kept])
    expected = ComBat(batch=pd.Series(["A"] * EACH + ["B"] * EACH), method="johnson").fit(table).transform(table)
    assert found[:, kept] == pytest.approx(expected.to_numpy(), abs=1e-4)
    assert np.array_equal(found[:, ~kept], plain[:, ~kept])
    before, after = (abs(np.diff([each[:EACH, T1].mean(), each[EACH:, T1].mean()]))[0] for each in (plain, found))
    assert before > 0.8
    assert after < 0.2 * before


def test_a_site_with_few_patients_and_one_that_is_not_known_stay_as_they_are(
    network: StemTailNetwork, fake_store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    few = LEAST_PATIENTS - 1
    studies = at_hospitals("A" * EACH + "B" * EACH + "C" * few + " ")
    studies = [replace(study, label=1) if study.carried["hospital"] == "A" else study for study in studies]
    store = stored(fake_store, studies)
    plain = seen(network, store, studies)
    with caplog.at_level(logging.WARNING):
        changes = combat(network, studies, store)  # type: ignore[arg-type]
    assert list(changes) == ["A", "B"]
    assert f"all {EACH} training patients of site A are of one class" in caplog.text
    network.radiomics.harmonise(changes)  # type: ignore[union-attr]
    with at_sites(network, sites_of(network, studies)):
        found = seen(network, store, studies)
    assert np.array_equal(found[2 * EACH :], plain[2 * EACH :])
    assert not np.allclose(found[: 2 * EACH], plain[: 2 * EACH])
    with pytest.raises(ConfigError, match=r"found 1 site with 5 .* \(A 12\)"):
        combat(network, studies[:EACH], store)  # type: ignore[arg-type]


def test_follow_ups_and_studies_without_a_tumour_teach_no_site(network: StemTailNetwork, fake_store: FakeStore) -> None:
    studies = at_hospitals("A" * EACH + "B" * EACH)
    store = stored(fake_store, studies)
    expected = combat(network, studies, store)  # type: ignore[arg-type]
    later, empty = at_hospitals("AB" * (EACH + 1))[-2:]
    store.put(later, np.random.default_rng(0).normal(3, 1, (4, 32, 32, 32)))
    store.put(empty, np.zeros((4, 32, 32, 32)))
    assert combat(network, [*studies, replace(later, follow_up=True), empty], store) == expected  # type: ignore[arg-type]


def test_where_all_are_from_one_site_batches_may_be_of_any_size() -> None:
    head = RadiomicsHead(1, {"A": [[2.0] * 10, [1.0] * 10]})
    tissue, gate = torch.rand(3, 4, 2, 2, 2), torch.ones(3, 2, 2, 2)
    plain = head.features(tissue, gate)
    with head.at(["A"]):
        assert torch.equal(head.features(tissue, gate), plain * 2 + 1)
    with head.at(["A", "B", "A"]):
        assert torch.equal(head.features(tissue, gate)[1], plain[1])
    assert torch.equal(head.features(tissue, gate), plain)
    assert not [name for name in head.state_dict() if "weigh" not in name], "it goes into the recipe"


@pytest.mark.parametrize(
    ("column", "said"),
    [("WHO grade", "gives the label away"), ("site", r"no column 'site'; found 'hospital'\. Name")],
)
def test_a_column_that_is_no_site_is_refused(column: str, said: str) -> None:
    cohort = Cohort(name="two", sequences=SEQUENCES, studies=tuple(at_hospitals("AB")))
    with pytest.raises(ConfigError, match=said):
        require_sites(column, cohort)
    require_sites("hospital", cohort)


def test_the_extra_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'idh_lightning\[sites\]'"):
        require_sites("hospital", Cohort(name="two", sequences=SEQUENCES, studies=tuple(at_hospitals("AB"))))


def test_sites_without_a_locator_are_refused(tmp_path: Path) -> None:
    from tiny_checkpoint import settings_of

    config = settings_of(tmp_path, "model.harmonise=site", "model.locator=null")
    with pytest.raises(ConfigError, match=r"model\.harmonise: found with model\.locator=null"):
        check_config(OmegaConf.to_container(config, resolve=True), {})  # type: ignore[arg-type]


def test_a_new_study_is_changed_by_its_site_and_one_of_another_is_flagged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_checkpoint(tmp_path / "run", tiny_cohort(tmp_path / "cohort"))
    checkpoint = Checkpoint.read(run)
    size = checkpoint.network().radiomics.weigh.in_features  # type: ignore[union-attr]
    sites = {"A": [[1.5] * size, [0.1] * size], "B": [[1.0] * size, [0.0] * size]}
    recipe = {**checkpoint.recipe, "model": {**checkpoint.recipe["model"], "harmonise": "hospital", "sites": sites}}
    replace(checkpoint, recipe=recipe).write()
    study = write_study(tmp_path, "new", seed=100, mask=False)
    files = {name: str(file) for name, file in study.files.items()}
    rows = [{"study_id": f"at_{site or 'none'}", "hospital": site, **files} for site in ("A", "B", "C", "")]
    pd.DataFrame(rows).to_csv(tmp_path / "new.csv", index=False)
    predictor = Predictor(run)
    found = {answer.study_id: answer for answer in predictor.predict(tmp_path / "new.csv")}
    network, image = Checkpoint.read(run).network(), predictor.ensemble.preprocessing(study, SEQUENCES).image
    volume = torch.from_numpy(image.astype(np.float16).astype(np.float32))[None]
    for name, answer in found.items():
        with torch.no_grad(), at_sites(network, [name.removeprefix("at_")]):
            logits = network(volume)[0]
        assert answer.probability == pytest.approx(float(torch.sigmoid(logits[1] - logits[0])), abs=1e-5), name
    assert found["at_A"].probability != pytest.approx(found["at_B"].probability, abs=1e-3)
    assert found["at_C"].probability == found["at_B"].probability
    flags = {name: [text for text in answer.warnings if "not harmonised" in text] for name, answer in found.items()}
    assert {name for name, texts in flags.items() if texts} == {"at_C", "at_none"}
    assert "knows A, B. If it is one, give a table with the column hospital" in flags["at_none"][0]
    with caplog.at_level(logging.INFO):
        export(run, tmp_path / "model.pt2", form="torch_export")
    assert "not compared with predictions of the run, which harmonises A, B, and the file no site" in caplog.text


def test_a_training_that_goes_on_without_the_sites_of_the_run_before_is_told_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = SimpleNamespace(file="a/best.ckpt", recipe={"model": {"harmonise": "hospital", "sites": {"A": []}}})
    network = SimpleNamespace(harmonise=None, radiomics=None)
    _harmonise(SimpleNamespace(start=before, model=SimpleNamespace(network=network), data=None))  # type: ignore[arg-type]
    assert "a/best.ckpt was trained with model.harmonise=hospital" in caplog.text


@pytest.mark.slow
def test_a_run_predicts_and_explains_its_test_patients_as_of_their_sites(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    studies = PhantomCohort(tmp_path / "data", patients=40, seed=3, spacing_mm=4.0, workers=1).read().studies
    rows = [
        {"study_id": s.study_id, "patient_id": s.patient_id, "idh": ("wildtype", "mutant")[s.label]}
        | {"scanner": "AB"[index % 2], "tumor_segmentation": s.mask, **s.files}
        for index, s in enumerate(studies)
        if not s.follow_up
    ]
    table = tmp_path / "cohort.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    cohort = ("cohort=table", f"cohort.table={table}")
    done = run_here(
        train.main,
        *SMALL,
        *cohort,
        "model.harmonise=scanner",
        "trainer.max_epochs=1",
        "split.validation=0.25",
        "split.test=0.25",
        "evaluation.bootstrap=200",
        "hydra.run.dir=run",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv").query("split == 'test'").set_index("study_id")
    checkpoint = Checkpoint.read(tmp_path / "run")
    network, known = checkpoint.network(), {study.study_id: study for study in studies}
    assert list(checkpoint.recipe["model"]["sites"]) == ["A", "B"]
    store = VolumeStore(
        tmp_path / "again", instantiate_section(checkpoint.recipe["preprocessing"]), checkpoint.sequences
    )
    sites = {row["study_id"]: row["scanner"] for row in rows}
    tested = [known[name] for name in predictions.index]
    store.prepare(tested, workers=1)
    changed = 0
    for study in tested:
        volume = volume_tensor([store.open(study)], network)
        with torch.no_grad():
            plain = network(volume)[0]
            with at_sites(network, [sites[study.study_id]]):
                logits = network(volume)[0]
        assert predictions.loc[study.study_id, "logit"] == pytest.approx(float(logits[1] - logits[0]), abs=1e-3)
        changed += abs(float(plain[1] - plain[0] - logits[1] + logits[0])) > 1e-4
    assert changed > len(tested) / 2
    pd.DataFrame(rows).assign(scanner="C", patient_id=lambda t: "X" + t["patient_id"]).to_csv(table, index=False)
    judged = run_here(
        evaluate.main, "checkpoint=run", *cohort, "seen_by=[patient_id]", "hydra.run.dir=judged", folder=tmp_path
    )
    assert (
        "Site 'C': 40 studies are not harmonised; the network knows A, B."
        in judged.stdout + judged.stderr + caplog.text
    )

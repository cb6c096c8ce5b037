"""The comparison of methods: what it chooses, what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FakeStore, studies_of
from hydra import compose, initialize_config_dir
from scipy.stats import bootstrap
from tiny_checkpoint import tiny_cohort, write_checkpoint

from idh_lightning.attribution import Evidence, GradCAM
from idh_lightning.attribution.comparison import ComparedMaps, MapComparison, _announce_duration, _Subject
from idh_lightning.attribution.maps import methods_named
from idh_lightning.attribution.sanity import BOUNDS
from idh_lightning.attribution.scores import SCORES, choose, mean_ranks, mean_with_interval, summarised
from idh_lightning.attribution.studies import reference_maps
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import IDH, SEQUENCES
from idh_lightning.commands import explaining as explanation
from idh_lightning.config.checks import CONF_DIR
from idh_lightning.errors import CheckpointError, ConfigError, EvaluationError
from idh_lightning.models import StemTailNetwork
from idh_lightning.phantom import PhantomCohort, SignMasks, evidence_file
from idh_lightning.reports.explanations_page import write_explanations_page
from idh_lightning.runs import explaining
from idh_lightning.volumes import Preprocessing, VolumeStore, codes_on_grid


def scores_of(means: dict[str, float], studies: int = 12) -> pd.DataFrame:
    """Return rows of explanations.csv in which a method has the same mean in every score, less so outside the brain."""
    rng = np.random.default_rng(0)
    rows = []
    for method, mean in means.items():
        for study in range(studies):
            values = dict.fromkeys(SCORES, mean + 0.02 * rng.normal()) | {"outside_brain": 1 - mean}
            rows.append({"study_id": f"s{study}", "method": method, "right": study % 3 > 0, **values})
    return pd.DataFrame(rows)


def test_an_interval_is_that_of_scipys_bootstrap_and_a_constant_has_none() -> None:
    values = np.random.default_rng(3).random(30)
    expected = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    assert mean_with_interval(values) == pytest.approx((values.mean(), expected.low, expected.high))
    assert np.isnan(mean_with_interval(np.ones(5))[1:]).all()


def test_scores_are_split_by_whether_the_call_was_right() -> None:
    scores = scores_of({"a": 0.5})
    summary = summarised(scores, resamples=100).set_index(["group", "score"])
    for group, rows in (("all", scores), ("right", scores[scores["right"]]), ("wrong", scores[~scores["right"]])):
        assert summary.loc[(group, "auprc"), "value"] == pytest.approx(rows["auprc"].mean())
        assert summary.loc[(group, "auprc"), "n"] == len(rows)
    assert "right" not in summarised(scores.drop(columns="right"), resamples=100)["group"].to_numpy()


def test_the_best_method_that_is_sane_is_chosen_and_baselines_never_are() -> None:
    summary = summarised(scores_of({"a": 0.3, "b": 0.6, "c": 0.5, "baseline: brain mask": 0.9}), resamples=100)
    ranks = mean_ranks(summary, {})
    assert ranks.to_dict() == {"b": 1.0, "c": 2.0, "a": 3.0}
    sanity = pd.DataFrame({"method": ["a", "b", "b", "c"], "passed": [True, True, False, True]})
    found = choose(ranks, sanity, ["a", "b", "c"])
    assert found.method == "c"
    assert "2 of 3 methods that pass every sanity check" in found.why
    assert choose(ranks, sanity.iloc[:0], ["a", "b", "c"]).method == "b"
    none_sane = choose(ranks, sanity.assign(passed=False), ["a", "b", "c"])
    assert none_sane.method == "b"
    assert "none of which passes" in none_sane.why


def test_faithfulness_decides_where_no_study_has_a_mask() -> None:
    nothing = summarised(pd.DataFrame({"method": ["a", "b"], "auprc": [np.nan, np.nan]}))
    ranks = mean_ranks(nothing, {"a": 0.1, "b": 0.3})
    assert choose(ranks, pd.DataFrame(columns=["method", "passed"]), ["a", "b"]).method == "b"
    assert choose(mean_ranks(nothing, {}), pd.DataFrame(), ["a", "b"]).method == "a"


def configured(*overrides: str) -> object:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("explain", overrides=list(overrides))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomCohort:
    folder = tmp_path_factory.mktemp("phantom")
    return PhantomCohort(folder, patients=10, spacing_mm=6, seed=2, workers=1)


@pytest.fixture(scope="module")
def explained(phantom: PhantomCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two methods were compared on a synthetic cohort."""
    place = tmp_path_factory.mktemp("explained")
    run, other = (write_checkpoint(place / name, tiny_cohort(place / "heads", 8)) for name in ("run", "other"))
    studies = sorted(phantom.read().studies, key=lambda study: study.label)
    others = ",".join(study.study_id for study in studies[2:-2])
    config = configured(
        f"cohort.exclude=[{others}]",
        f"checkpoint={run}",
        f"output={place / 'out'}",
        f"paths.store={place / 'store'}",
        "methods=[grad_cam,layer_cam,evidence]",
        *(f"other_seeds=[{other}]", f"permuted_labels=[{other}]"),
        "cohort=phantom",
        f"cohort.folder={phantom.folder.parent}",
        *("cohort.patients=10", "cohort.spacing_mm=6", "cohort.seed=2", "cohort.workers=1"),
        *(f"explanation.{key}_studies=2" for key in ("faithfulness", "sanity", "sequence")),
        *("explanation.donors=2", "explanation.bootstrap=100", "device=cpu"),
    )
    explanation.explain_checkpoint(config)
    return place / "out"


@pytest.mark.slow
def test_a_comparison_leaves_everything_that_was_promised(explained: Path) -> None:
    content = json.loads((explained / "explanations.json").read_text())
    scores = pd.read_csv(explained / "explanations.csv")
    names = ["Grad-CAM of entry", "LayerCAM of blocks.2", "Evidence"]
    assert list(content["seconds_per_study"]) == names
    assert content["default"]["method"] in names
    assert set(scores["method"]) == {*names, "baseline: brain mask", "baseline: centre of the brain"}
    assert (scores.groupby("method").size() == content["studies"]).all()
    theirs = scores[scores["method"].isin(names)]
    assert theirs[[*SCORES, "auprc_reference", "energy_inside_reference", "best_iou_reference"]].notna().all(axis=None)
    assert {row["check"] for row in content["sanity"]} == set(BOUNDS)
    alike = {row["check"]: row for row in content["sanity"] if row["method"] == names[0]}  # to a network just like it
    assert alike["other seed"]["value"] == alike["permuted labels"]["value"] == pytest.approx(1)
    assert alike["other seed"]["passed"] is True
    assert alike["permuted labels"]["passed"] is False
    assert {row["sequence"] for row in content["sequences"]} == set(SEQUENCES)
    assert content["faithfulness"][names[0]]["faithfulness"]["n"] == 2
    studies = set(scores["study_id"])
    written = {f"{study}_{kind}.nii.gz" for study in studies for kind in ("cam", "tumour")}
    assert {path.name for path in (explained / "explanations").iterdir()} == written
    assert {path.stem for path in (explained / "figures" / "cam").glob("*.png")} == studies
    signs = pd.read_csv(explained / "explanations_by_sign.csv")
    assert "any sign" in set(signs["sign"])
    assert np.isfinite(signs[["margin_lost", "margin_lost_tumour"]]).all(axis=None)
    decides = signs[signs["margin_lost"] > signs["margin_lost_tumour"].clip(lower=0)]
    where = {(row["method"], row["sign"]): row for row in content["by_sign"] if "decisive" in row["score"]}
    for (method, sign), row in where.items():
        theirs = decides[(decides["method"] == method) & (decides["sign"] == sign)]["pointing_game"]
        assert row["n"] == len(theirs)
        assert row["value"] == (pytest.approx(theirs.mean()) if len(theirs) else None)
    page = (explained / "explanations.html").read_text()
    for words in (
        *names,
        "baseline: brain mask",
        "Sanity:",
        "Faithfulness:",
        "Among the worst",
        content["default"]["why"],
    ):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")


def test_tables_of_an_earlier_comparison_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compared(SimpleNamespace):
        def __call__(self, *_: object, **__: object) -> ComparedMaps:
            return ComparedMaps(
                tables={"explanations.csv": pd.DataFrame({"dice": [1]})}, content={}, method=Evidence(), studies=()
            )

    for name in ("sanity.csv", "explanations.csv", "notes.csv"):
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(explaining, "write_explanations_page", lambda folder: None)
    cohort = SimpleNamespace(target=IDH, sequences=SEQUENCES, name="some")
    prepared = SimpleNamespace(by_split={"test": [], "train": []}, store=None, cohort=cohort)
    explaining.write_map_comparison(
        Compared(batches=lambda *_: iter(())),  # type: ignore[arg-type]
        torch.nn.Identity(),  # type: ignore[arg-type]
        prepared,  # type: ignore[arg-type]
        tmp_path,
        post_processing=None,
        trained_on="others",
    )
    assert {file.name for file in tmp_path.glob("*.csv")} == {"explanations.csv", "notes.csv"}
    assert "before" not in (tmp_path / "explanations.csv").read_text()


@pytest.mark.slow
def test_maps_are_written_in_patient_space(explained: Path, phantom: PhantomCohort) -> None:
    written = {path.name.removesuffix("_cam.nii.gz") for path in (explained / "explanations").glob("*_cam.nii.gz")}
    for study in phantom.read().studies:
        if study.study_id not in written:
            continue
        cam = nib.load(explained / "explanations" / f"{study.study_id}_cam.nii.gz")
        flair = nib.load(study.files["FLAIR"])
        assert cam.shape == flair.shape
        np.testing.assert_allclose(cam.affine, flair.affine, atol=1e-5)


@pytest.mark.slow
def test_a_page_is_made_of_what_is_in_its_folder(explained: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"explanations\.json: not there"):
        write_explanations_page(tmp_path)
    before = (explained / "explanations.html").read_text()
    assert write_explanations_page(explained).read_text() == before


def test_the_folder_of_a_run_and_an_unknown_method_are_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("study_id\n")
    with pytest.raises(ConfigError, match="is the folder of a run"):
        explanation.explain_checkpoint(configured(f"checkpoint={tmp_path}", f"output={tmp_path}"))
    run = write_checkpoint(tmp_path / "run", tiny_cohort(tmp_path / "heads", 8))
    with pytest.raises(CheckpointError, match="its cohort is not known"):
        explanation.explain_checkpoint(configured(f"checkpoint={run}", f"output={tmp_path / 'out'}"))
    other = write_checkpoint(tmp_path / "other", tiny_cohort(tmp_path / "heads", 8))
    content = torch.load(other / "checkpoints" / "best.ckpt", weights_only=True)
    content["recipe"]["preprocessing"]["grid"] = 48
    torch.save(content, other / "checkpoints" / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"other: has another preprocessing than the run that is explained"):
        explanation.explain_checkpoint(
            configured(f"checkpoint={run}", f"output={tmp_path / 'out'}", f"other_seeds=[{other}]")
        )
    settings = (f"checkpoint={run}", f"output={tmp_path / 'out'}", f"other_seeds=[{run}]")
    with pytest.raises(ConfigError, match=r"found runs to compare maps with, and explanation\.sanity_studies=0"):
        explanation.explain_checkpoint(configured(*settings, "explanation.sanity_studies=0"))
    network = Checkpoint.read(run).network()
    assert {"Evidence", "Dense vote"} <= {method.name for method in methods_named(None, network)}
    network.locator = None
    assert not {"Evidence", "Dense vote"} & {method.name for method in methods_named(None, network)}
    with pytest.raises(ConfigError, match="methods: found guess; expected names of files in conf/explain"):
        methods_named(["grad_cam", "guess"], network)


def test_what_takes_hundreds_of_times_as_long_is_left_out_unless_named_and_that_is_said(
    small_network: Callable[..., StemTailNetwork], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    network = small_network()
    quick = {method.name for method in methods_named(None, network)}
    assert "Integrated gradients" in quick
    assert not {"Occlusion", "Supervoxels"} & quick
    assert "methods=[occlusion,supervoxels]" in caplog.text
    assert [method.name for method in methods_named(["occlusion", "supervoxels"], network)] == [
        "Occlusion",
        "Supervoxels",
    ]


def test_maps_that_take_long_are_announced_after_the_first_studies_with_what_takes_less(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _announce_duration({"quick": 4.0, "slow": 40.0}, done=4, studies=104)
    assert "takes about 18 min" in caplog.text  # 100 studies of 1 and 10 s
    assert "slow (10.0 s a study), quick (1.0 s a study)" in caplog.text
    assert "explanation.studies=8" in caplog.text
    caplog.clear()
    _announce_duration({"quick": 4.0}, done=4, studies=104)
    assert not caplog.text


@pytest.mark.parametrize(("asked", "explained", "checked"), [(0, 3, 0), (1, 3, 2), (2, 3, 2), (9, 3, 3), (1, 1, 0)])
def test_one_study_is_never_checked_alone_and_whatever_is_not_as_asked_is_said(
    asked: int, explained: int, checked: int, fake_store: FakeStore, small_network: Callable[..., StemTailNetwork],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    network, studies = small_network(), studies_of([0, 1, 1], "s")[:explained]
    for study in studies:
        fake_store.put(study, np.random.default_rng(len(study.study_id)).normal(size=(4, 32, 32, 32)))
    monkeypatch.setattr("idh_lightning.attribution.sanity.modules_downwards", lambda _: {"classifier": "tail"})
    monkeypatch.setattr(
        "idh_lightning.attribution.comparison.shifts", lambda *_: pd.DataFrame({"study": [0], "spearman": [1.0]})
    )
    method = GradCAM(layer="entry")
    on = _Subject(network, fake_store, studies, studies, [method], SEQUENCES)
    table, cascades = MapComparison(sanity_studies=asked)._sanity(on, {})
    assert (cascades["study"].nunique() if len(cascades) else 0) == checked
    assert set(table["method"]) == ({method.name} if checked else set())
    assert ("explanation.sanity_studies is" in caplog.text) == (asked not in (0, checked))


def test_the_evidence_of_a_study_comes_to_the_grid_of_the_network(phantom: PhantomCohort, tmp_path: Path) -> None:
    study = phantom.read().studies[0]
    store = VolumeStore(tmp_path, Preprocessing(grid=33), SEQUENCES)
    store.prepare([study], workers=1)
    stored = store.open(study)
    codes = codes_on_grid(evidence_file(study), stored)
    assert codes.shape == stored.brain.shape
    tumour = np.asarray(stored.mask) > 0
    marked = codes > 0
    assert marked.any()
    assert set(np.unique(codes)) <= set(range(int(max(SignMasks)) * 2))
    # The mask on the grid is averaged and the codes are of the nearest voxel, so that they differ at the edge alone.
    assert (marked & tumour).sum() > 0.8 * marked.sum()


def test_a_study_without_a_mask_has_no_reference(phantom: PhantomCohort, tmp_path: Path) -> None:
    class WithoutMask:
        mask = None

    assert reference_maps(None, [], WithoutMask()) == {}  # type: ignore[arg-type]


def test_the_interval_of_a_mean_holds_it_or_is_not_given() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 30))
        kinds = (rng.random(n) < 0.1, rng.lognormal(0, 3, n), rng.random(n).round(1), np.zeros(n))
        mean, low, high = mean_with_interval(kinds[seed % 4].astype(float), resamples=200)
        assert np.isnan(low) or low <= mean <= high, seed

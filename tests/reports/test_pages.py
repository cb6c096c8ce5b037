"""The pages in a browser: none scrolls sideways and no table is cut, on a telephone and on a desk."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from browser import CHROMIUM, needs_chromium
from cohort_files import write_ucsf_cohort
from test_report import run_report, write_run
from test_reports import make_run

from idh_lightning.attribution.scores import REFERENCED, SCORES
from idh_lightning.cohort import HoldOut, raise_or_exclude
from idh_lightning.inference import StudyPrediction
from idh_lightning.inference.study_page import alarm_line
from idh_lightning.reports.cohort_page import write_cohort_report
from idh_lightning.reports.explanations_page import write_explanations_page
from idh_lightning.reports.page import badges, render
from idh_lightning.reports.run_page import write_report

LONG = "a_study_of_a_hospital_whose_identifiers_are_very_long_indeed_and_have_no_gap_" * 2

CEILED = tuple(f"{name}_reference" for name in REFERENCED)

MEASURE = """<pre id="seen"></pre><script>
addEventListener("load", () => {  // of all frames
const seen = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, root = page.scrollingElement;
  page.querySelectorAll("details").forEach(one => one.open = true);
  const wide = [...page.querySelectorAll("table")].filter(one => one.scrollWidth > one.parentElement.clientWidth + 1
    || one.getBoundingClientRect().right > root.clientWidth + 1);
  const cut = [...page.querySelectorAll("td, th")].filter(one => one.scrollWidth > one.clientWidth + 1);
  const texts = [...wide, ...cut].map(one => one.innerText.slice(0, 80));
  return {page: frame.id, width: Number(frame.width), reach: root.scrollWidth, cut: texts};
});
document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


def study_page(folder: Path) -> Path:
    """Write the page of a flagged study as `predict` does, without its pictures."""
    answer = StudyPrediction(
        study_id=LONG, status="flagged", probability=0.42, low=0.1, high=0.9, decision="mutant", unlike=("skull",),
        warnings=(f"{LONG} is another grid",), members=(0.4, 0.44),
    )  # fmt: skip
    page = render(
        "study.html.j2", title=f"{LONG}: IDH status from MRI", badges=badges("phantom"), answer=answer,
        registrations=[], brain={"words": f"A brain of 1300 mL was found in {LONG}", "picture": "data:,"},
        files={"FLAIR": f"{LONG}.nii.gz"}, reference="FLAIR", sets={}, threshold=0.4, confidence=0.95, coverage=0.9,
        checkpoints=[f"/outputs/{LONG}/checkpoints/best.ckpt"], cohorts=["phantom"], picture="data:,", viewer=None,
        threshold_from="chosen on validation patients", notices=[f"Learnt from {LONG} only."],
        alarm=alarm_line(answer.unlike),
    )  # fmt: skip
    path = folder / "study.html"
    path.write_text(page, encoding="utf-8")
    return path


def explanations_page(folder: Path) -> Path:
    """Write the page that compares methods of explanation, with invented scores."""
    methods = ["EigenGradCAM of blocks.5 with a long name", "baseline: centre of the brain"]
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 12}
    scores = [{"method": m, "group": "all", "score": s, **estimate} for m in methods for s in (*SCORES, *CEILED)]
    areas = dict.fromkeys(("deletion", "insertion", "random_deletion", "random_insertion"), estimate)
    curves = {name: [0.9, 0.5, 0.2] for name in areas}
    sequences = [{"group": "all", "sequence": name, "size": 0.3, **estimate} for name in ("FLAIR", "T1", "T1c", "T2")]
    content = {
        "default": {"method": methods[0], "why": "It has the best mean rank."},
        "studies": 12, "cohort": "phantom", "trained_on": "phantom", "mean_ranks": {methods[0]: 1.0},
        "seconds_per_study": {methods[0]: 0.2}, "scores": scores, "by_sign": [],
        "sanity": [{"method": methods[0], "check": "randomised", "bound": "< 0.5", "passed": True, **estimate}],
        "faithfulness": {
            methods[0]: {"areas": areas, "faithfulness": estimate, "fractions": [0, 0.5, 1], "curves": curves}
        },
        "cascade": [{"method": methods[0], "module": name, "spearman": 0.3} for name in ("classifier", "blocks.6")],
        "sequences": sequences,
    }  # fmt: skip
    folder.mkdir()
    (folder / "explanations.json").write_text(json.dumps(content))
    rows = [{"study_id": LONG, "method": m, **dict.fromkeys(SCORES, 0.5)} for m in methods]
    pd.DataFrame(rows).to_csv(folder / "explanations.csv", index=False)
    return write_explanations_page(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, with long identifiers."""
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / "run", images=0)
    for name in ("cohort.csv", "predictions.csv", "exclusions.csv"):
        text = (run / name).read_text().replace("UCSF-PDGM-0191", LONG).replace("UCSF-PDGM-0900", LONG)
        (run / name).write_text(text)
    runs = [write_run(folder / f"{LONG}{seed}", test=range(100), seed=seed) for seed in (1, 2)]
    run_report(*runs, folder=folder / "compared")
    copy = write_ucsf_cohort(folder, patients=30)
    copy.set(1, "IDH", LONG)
    cohort = raise_or_exclude(copy.reader().read(), on_error="exclude")
    return {
        "report": write_report(run),
        "comparison": folder / "compared" / "report.html",
        "cohort": write_cohort_report(cohort, folder / "cohort_report.html", HoldOut(seed=0)(cohort)),
        "study": study_page(folder),
        "explanations": explanations_page(folder / "explained"),
    }


@pytest.mark.slow
@needs_chromium
def test_no_page_scrolls_sideways_and_no_table_is_cut_on_a_telephone_or_a_desk(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    frames = [
        f'<iframe id="{kind}" width="{width}" height="900" src="{path.as_uri()}"></iframe>'
        for kind, path in pages.items()
        for width in (390, 1280)
    ]
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!DOCTYPE html>{''.join(frames)}{MEASURE}", encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
        "--disable-sync --allow-file-access-from-files --window-size=1400,1000 --virtual-time-budget=20000 --dump-dom"
    )
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", outer.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-500:] + done.stderr[-500:]
    seen = json.loads(html.unescape(found[1]))
    assert len(seen) == len(frames)
    assert [one for one in seen if one["cut"] or one["reach"] > one["width"]] == []


def test_all_pages_share_one_stylesheet_with_a_dark_mode(pages: dict[str, Path]) -> None:
    styles = {kind: re.findall(r"<style>.*?</style>", path.read_text(), re.DOTALL) for kind, path in pages.items()}
    assert all(len(found) == 1 for found in styles.values())
    assert len({found[0] for found in styles.values()}) == 1
    assert "prefers-color-scheme: dark" in styles["cohort"][0]


def test_every_cell_names_its_column_for_screens_too_narrow_for_a_table(pages: dict[str, Path]) -> None:
    page = pages["report"].read_text()
    assert '<td data-head="sensitivity" class="number">' in page
    assert "<td>" not in page
    narrow = Path(pages["report"].parent / "figures" / "narrow")
    assert {path.stem for path in narrow.iterdir()} >= {"baselines", "subgroups", "learning_curves"}
    assert page.count('<source media="(max-width: 640px)"') == len(list(narrow.iterdir()))


def test_every_page_of_a_network_says_what_it_is_not_for(pages: dict[str, Path]) -> None:
    for kind in ("report", "study", "explanations"):
        page = pages[kind].read_text()
        for badge in ("Not for clinical use", "Trained on synthetic patients"):
            assert f'<span class="stamp">{badge}</span>' in page, kind
    assert "Not for clinical use" in pages["comparison"].read_text()
    assert "Trained on synthetic" not in pages["comparison"].read_text()
    assert "These patients are synthetic" in pages["explanations"].read_text()

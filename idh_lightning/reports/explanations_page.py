"""All methods of explanation on one page: how they score, whether they are sane and faithful, and how they look."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from idh_lightning.attribution.sanity import BOUNDS
from idh_lightning.attribution.scores import BASELINE
from idh_lightning.attribution.studies import ANY_SIGN, POINTING_WHERE_DECISIVE
from idh_lightning.cli.tables import number
from idh_lightning.cohort import Target
from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation import read_table
from idh_lightning.reports import map_figures
from idh_lightning.reports.page import Picture, picture
from idh_lightning.reports.run_figures import save_figure
from idh_lightning.reports.run_folder import read_run
from idh_lightning.reports.run_page import save_run_page
from idh_lightning.reports.run_results import localisation_tables
from idh_lightning.reports.tables import Estimate, ReportTable, as_estimate, cell, count
from idh_lightning.reports.vocabulary import LOCALISATION, in_words

CASES = 3
"""Studies shown as the best, and as the worst."""

CHECK_WORDS = {
    "randomised": "all weights randomised: the map must change",
    "randomised tail": "what has learnt the label randomised: the map must not stay as it is",
    "shifted": "study moved by a voxel or two: the map must move with it",
    "permuted labels": "learnt from permuted labels: the map must change",
    "other seed": "learnt with another seed: the map must stay",
}


def write_explanations_page(folder: Path) -> Path:
    """Write explanations.html into a folder, from explanations.json and what else is in it, and return its path.

    Raises:
        EvaluationError: If explanations.json or explanations.csv is not there.
    """
    for name in ("explanations.json", "explanations.csv"):
        if not (folder / name).is_file():
            raise EvaluationError(
                f"{folder / name}: not there; expected what compared the maps. Run the stage 'explain'."
            )
    content: dict[str, Any] = json.loads((folder / "explanations.json").read_text(encoding="utf-8"))
    scores = read_table(folder / "explanations.csv")
    read = read_run(folder)
    target = Target.of_record(content.get("target"))
    known = {key: content[key] for key in ("cohort", "trained_on", "target") if content.get(key)}
    method = content["default"]["method"]
    theirs = {row["score"]: row for row in content["scores"] if (row["method"], row["group"]) == (method, "all")}
    return save_run_page(
        replace(read, provenance=known | dict(read.provenance)),
        "explanations.html",
        "explanations.html.j2",
        _drawn(folder, content, scores),
        title=f"Maps of {target.title}: methods compared",
        headline=_headline(content, as_estimate(theirs.get("pointing_game"))),
        tiles=[(f"{one.short}: {one.name}", as_estimate(theirs.get(key))) for key, one in LOCALISATION.items()],
        whom="studies",
        localisation=localisation_tables(pd.DataFrame(content["scores"])) if content["scores"] else [],
        any_sign=_signs(content, any_sign=True),
        signs=_signs(content, any_sign=False),
        sanity=_sanity(content),
        faithfulness=_faithfulness(content),
        sequences=_sequences(content, target),
        seconds=_seconds(content),
        cases=_cases(folder, method, scores),
    )


def _headline(content: Mapping[str, Any], pointing: Estimate | None) -> list[str]:
    method = content["default"]["method"]
    sentences: list[str] = []
    if pointing is not None and pointing.value is not None:
        low, high = (100 * (end or 0) for end in (pointing.low, pointing.high))
        interval = "" if pointing.low is None else f" (95% interval {low:.0f} to {high:.0f})"
        sentences.append(
            f"In {100 * pointing.value:.0f}% of {pointing.n} studies{interval} the hottest voxel of the map by "
            f"{method} lies in the tumour."
        )
    sentences.append(f"{content['default']['why']} Its maps are the ones shown.")
    failed = sorted({row["method"] for row in content["sanity"] if not row["passed"]})
    if failed:
        sentences.append(f"Not believed, since they fail a sanity check: {', '.join(failed)}.")
    return sentences


def _drawn(folder: Path, content: Mapping[str, Any], scores: pd.DataFrame) -> dict[str, str]:
    """Figures of the page, drawn into the folder: file name -> words."""
    drawn: dict[str, tuple[Callable[..., Figure], str]] = {}
    columns = {
        score: metric.short for score, metric in LOCALISATION.items() if score in scores and scores[score].notna().any()
    }
    method = content["default"]["method"]
    if columns:
        muted = [name for name in scores["method"].unique() if str(name).startswith(BASELINE)]
        drawn["map_scores"] = (
            partial(map_figures.score_distributions, scores, columns, chosen=method, muted=muted),
            f"Scores of each study by each method; {method} is coloured, baselines are grey.",
        )
    if content["faithfulness"]:
        curves = {name: found["curves"] for name, found in content["faithfulness"].items()}
        fractions = next(iter(content["faithfulness"].values()))["fractions"]
        drawn["faithfulness"] = (
            partial(map_figures.faithfulness_curves, fractions, curves),
            "Probability of the predicted class while the hottest voxels are replaced, or brought back.",
        )
    if content["cascade"]:
        drawn["cascade"] = (
            partial(map_figures.cascade_curves, pd.DataFrame(content["cascade"]), bound=BOUNDS["randomised"][1]),
            "Rank correlation with the map of the trained network while the network is randomised.",
        )
    shown: dict[str, str] = {}
    for name, (draw, words) in drawn.items():
        shown |= save_figure(draw, words, folder / "figures" / f"{name}.png")
    return shown


def _signs(content: Mapping[str, Any], *, any_sign: bool) -> ReportTable | None:
    """Scores against all signs taken together, or against each."""
    rows: dict[tuple[str, str], list[str]] = {}
    found = [row for row in content["by_sign"] if (row["sign"] == ANY_SIGN) == any_sign]
    scores = list(dict.fromkeys(row["score"] for row in found))
    order = {name: place for place, name in enumerate(content["mean_ranks"])}
    for row in sorted(found, key=lambda row: (row["sign"], order.get(row["method"], len(order)))):
        estimate = as_estimate(row)
        cells = rows.setdefault((row["sign"], row["method"]), [])
        text = cell(estimate, "")
        cells.append(f"{text}, n = {row['n']}" if row["score"] == POINTING_WHERE_DECISIVE else text)
        if row["score"] == scores[-1]:
            cells.append(count(estimate))
    if not rows:
        return None
    words = {key: metric.short for key, metric in LOCALISATION.items()}
    words[POINTING_WHERE_DECISIVE] = "pointing game where it outweighs the tumour"
    head = ["", *(words[score] for score in scores), "studies"]
    lines = [[method if any_sign else f"{in_words(sign)}: {method}", *cells] for (sign, method), cells in rows.items()]
    which = "any sign that tells" if any_sign else "each sign that tells"
    return ReportTable(
        f"Do the maps lie on {which} IDH-mutant from wildtype? Its voxels are known of synthetic patients", head, lines
    )


def _sanity(content: Mapping[str, Any]) -> ReportTable | None:
    rows = []
    for row in content["sanity"]:
        check, estimate = CHECK_WORDS.get(row["check"], row["check"]), as_estimate(row)
        told = "passes" if row["passed"] else "fails"
        rows.append([row["method"], check, cell(estimate, ""), row["bound"], count(estimate), told])
    head = ["", "check", "rank correlation of maps (95% interval)", "must be", "studies", ""]
    caption = "Sanity: do the maps change when they should, and stay when they should?"
    return ReportTable(caption, head, rows, (0, 1, 5)) if rows else None


def _faithfulness(content: Mapping[str, Any]) -> ReportTable | None:
    rows = []
    for method, found in content["faithfulness"].items():
        each = [
            as_estimate(node) for node in (*map(found["areas"].get, ("deletion", "insertion")), found["faithfulness"])
        ]
        rows.append([method, *(cell(one, "") for one in each), count(each[-1])])
    for found in list(content["faithfulness"].values())[:1]:
        areas = [as_estimate(found["areas"][f"random_{name}"]) for name in ("deletion", "insertion")]
        deletion, insertion = (0.0 if one is None else one.value or 0.0 for one in areas)
        cells = [cell(one, "") for one in areas]
        rows.append(["at random", *cells, number(insertion - deletion), count(areas[0])])
    head = ["", "area under deletion", "area under insertion", "insertion less deletion", "studies"]
    return ReportTable("Faithfulness: does the network depend on what a map calls hot?", head, rows) if rows else None


def _sequences(content: Mapping[str, Any], target: Target) -> ReportTable | None:
    rows: dict[str, list[str]] = {}
    sequences = list(dict.fromkeys(row["sequence"] for row in content["sequences"]))
    for row in content["sequences"]:
        estimate = as_estimate(row)
        rows.setdefault(row["group"], []).append("" if estimate is None else f"{estimate.text} [{number(row['size'])}]")
        if row["sequence"] == sequences[-1]:
            rows[row["group"]].append(count(estimate))
    caption = (
        f"What each sequence says for {target.positive}, in logits (Shapley values against sequences of other "
        f"patients; below 0 it speaks for {target.negative}); in brackets the mean size"
    )
    named = {"mutant": target.positive, "wildtype": target.negative}
    lines = [[in_words(group, named), *cells] for group, cells in rows.items()]
    return ReportTable(caption, ["group", *sequences, "studies"], lines) if lines else None


def _seconds(content: Mapping[str, Any]) -> ReportTable | None:
    ranks: Mapping[str, float] = content["mean_ranks"]
    rows = [
        [method, f"{ranks[method]:.1f}" if method in ranks else "", number(spent)]
        for method, spent in content["seconds_per_study"].items()
    ]
    return ReportTable("Mean rank over all scores, and what a map costs", ["", "mean rank", "seconds per study"], rows)


def _cases(folder: Path, method: str, scores: pd.DataFrame) -> Sequence[tuple[str, str, Picture]]:
    """(which, words, panel) of the studies with the best and with the worst maps of a method."""
    theirs = scores[scores["method"] == method].dropna(subset=["auprc"]).sort_values("auprc", ascending=False)
    most = min(CASES, len(theirs) // 2)
    cases = []
    for which, rows in (("best", theirs.head(most)), ("worst", theirs.tail(most).iloc[::-1])):
        for row in rows.to_dict("records"):
            path = folder / "figures" / "cam" / f"{row['study_id']}.png"
            if path.is_file():
                told = "" if "right" not in row else ", called right" if row["right"] else ", called wrong"
                words = f"{row['study_id']}: AUPRC {number(row['auprc'])}{told}"
                cases.append((which, words, picture(path, words, photograph=True)))
    return cases

"""Tables on the screen are legible at 80 columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from idh_lightning.cli.tables import FittingTable
from idh_lightning.commands.predicting import _summarise
from idh_lightning.inference import StudyPrediction

ROWS = [("GradCAM++ at blocks.4", "0.62 (0.91)", "0.30 (0.44)", "0.71 (0.88)", "yes", "a sentence that can be wrapped")]


def printed(width: int) -> str:
    table = FittingTable("Maps", ("method", "pointing", "energy", "AUPRC", "sane", "why"), ("why",))
    for row in ROWS:
        table.add_row(*row)
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    return screen.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_number_and_no_word_is_cut_at_any_width(width: int) -> None:
    text = printed(width)
    for cell in ROWS[0][:-1]:
        assert cell in text
    assert all(word in text for word in ROWS[0][-1].split())
    assert max(map(len, text.splitlines())) <= width


def test_a_wide_screen_shows_a_table_and_a_narrow_one_a_block_per_row() -> None:
    assert "│" in printed(160)
    assert "│" not in printed(60)
    assert "AUPRC     0.71 (0.88)" in printed(60)


def test_brackets_in_a_cell_are_no_markup() -> None:
    table = FittingTable("T", ("study", "found"))
    table.add_row("a", "[red]pending")
    screen = io.StringIO()
    Console(file=screen, width=80).print(table)
    assert "[red]pending" in screen.getvalue()


def test_answers_are_legible_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = StudyPrediction(
        study_id="BraTS-GLI-00012-000", status="answered", probability=0.42, low=0.1, high=0.9, decision="mutant",
        prediction_set="both",
    )  # fmt: skip
    _summarise([answer], tmp_path, (), 0.4)
    text = capsys.readouterr().out
    for words in ("study BraTS-GLI-00012-000", "answered", "0.42", "0.10 to 0.90", "mutant (mutant from 0.40)", "both"):
        assert words in text

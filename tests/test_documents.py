"""The documents hold: commands compose, links lead somewhere, the reference is what conf/ says."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from tiny_checkpoint import tiny_cohort, write_checkpoint
from tiny_dicom import classic, lump, save
from tiny_studies import write_study

from idh_lightning.cli.entry import composed
from idh_lightning.config.checks import CONF_DIR, check_config
from idh_lightning.config.text import as_text

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ROOT / "docs" / "reference" / "configuration.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/**/*.md"))]
COMMAND = "python -m idh_lightning."
FIRST_WORDS = ("memory", "growth", "startup")  # of the benchmark


def commands(page: Path) -> list[str]:
    """Command lines of a page, in blocks and within sentences, each on one line."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line[line.index(COMMAND) :] for line in lines if COMMAND in line]


DOCUMENTED = {line: page for page in reversed(PAGES) if page != GENERATED for line in commands(page)}


def overrides_of(words: list[str]) -> list[str]:
    """Overrides of a command line; of a sweep the first value each, of a run that is repeated the new ones."""
    kept: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if (
            word in (*FIRST_WORDS, "...", "--help")
            or word == "-m"
            or "--re" in word
            or before in ("--resume", "--rerun")
        ):
            continue
        kept.append(word)
    firsts = []
    for word in as_text(kept):
        (one,) = OverridesParser.create().parse_overrides([word])
        firsts.append(re.sub(r"=.*", f"={word.split('=')[1].split(',')[0]}", word) if one.is_sweep_override() else word)
    return firsts


@pytest.mark.parametrize("line", DOCUMENTED, ids=[f"{page.name}: {line[:60]}" for line, page in DOCUMENTED.items()])
def test_every_documented_command_composes(line: str) -> None:
    name, *words = shlex.split(line.removeprefix(COMMAND), comments=True)
    overrides = overrides_of(words)
    config = composed(name, overrides, hydra_too=True)
    choices = {**config.hydra.runtime.choices, "": name}
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    raw = OmegaConf.to_container(config, resolve=False)
    if "name" in raw:
        config.name = "documented"  # these two ask Hydra, which does not run here
    if "run" in raw.get("paths", {}):
        config.paths.run = "unused"
    complete = "..." not in words and "--resume" not in words and "--rerun" not in words and bool(words)
    if complete:
        check_config(OmegaConf.to_container(config, resolve=True), choices)


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=lambda page: page.name)
def test_every_setting_that_a_page_mentions_is_in_the_configuration_reference(page: Path) -> None:
    reference = GENERATED.read_text(encoding="utf-8")
    known = set(re.findall(r"^\| \[?`([^`]+)`", reference, re.MULTILINE))
    choices = set(re.findall(r"^### `([\w]+=\w+)`$", reference, re.MULTILINE))
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        words = shlex.split(span) if "=" in span and "(" not in span else []
        if not all(re.match(r"[+~]?[a-z][\w.]*(=|$)", word) for word in words):
            continue  # a command, an environment variable, a placeholder
        for word in words:
            key, _, value = word.lstrip("+~").partition("=")
            is_choice = (CONF_DIR / key).is_dir() and value
            assert word in choices if is_choice else key in known, f"{span}: {word}"


def test_every_command_is_documented_in_the_readme() -> None:
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("train", "prepare", "predict", "explain", "evaluate"):
        assert f"{COMMAND}{name}" in said


def test_the_configuration_reference_is_what_conf_says() -> None:
    script = GENERATED.with_name("generate_configuration.py")
    spec = importlib.util.spec_from_file_location("generate_configuration", script)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert GENERATED.read_text(encoding="utf-8") == generate.page(), f"run: python {script.relative_to(ROOT)}"


def test_every_file_of_conf_is_in_the_configuration_reference() -> None:
    said = GENERATED.read_text(encoding="utf-8")
    for file in CONF_DIR.rglob("*.yaml"):
        place = file.relative_to(CONF_DIR)
        name = f"{COMMAND}{file.stem}" if len(place.parts) == 1 else f"{place.parent}={file.stem}"
        assert f"### `{name}`" in said


def test_the_readme_is_short_and_its_lines_are() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_pictures_of_a_document_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_results_begins_with_date_commit_machine_and_command(page: Path) -> None:
    _, _, header, _, first = page.read_text(encoding="utf-8").splitlines()[:5]
    assert header == "| section | date | commit | machine | command |"
    assert re.search(r"\| 20\d\d-\d\d-\d\d.* \| .*[0-9a-f]{7}.* \| .+ \| `python -m .*` \|", first)


def test_every_check_of_a_cohort_is_in_the_reference() -> None:
    said = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    found: set[str] = set()
    for file in (ROOT / "idh_lightning").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)):
            named = [word.value for word in call.keywords if word.arg == "check"]
            first = call.args[:1] if isinstance(call.func, ast.Attribute) and call.func.attr == "fault" else []
            texts = [one.value for one in (*named, *first) if isinstance(one, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", text)}
    assert len(found) > 30
    assert {check for check in found if f"`{check}`" not in said} == set()


def test_console_commands_lead_to_functions_and_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    verbs = ("train", "predict", "evaluate", "explain", "report", "prepare", "export", "benchmark")
    assert list(project["scripts"]) == [f"idh-{verb}" for verb in verbs]
    for target in project["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = []
    outcome = ""
    if script.stem == "predict_one_study":
        studies = tiny_cohort(tmp_path / "studies")
        write_checkpoint(tmp_path / "run", studies)
        arguments = [tmp_path / "run", studies[0].files["FLAIR"].parent]
    elif script.stem == "score_descriptions":
        made_up = (ROOT / "tests" / "inference" / "series_descriptions.csv").read_text(encoding="utf-8")
        (tmp_path / "table.csv").write_text(f"{made_up}AX PD/T2 FSE,T2 (dual echo)\n", encoding="utf-8")
        arguments = [tmp_path / "table.csv"]
        outcome = "164 of 166 right\nT1c called T1 without a doubt: 0"
    elif script.stem == "score_dicom":
        save(classic(lump(), SeriesDescription="AX FLAIR"), tmp_path / "series")
        arguments = [Path(sys.executable).with_name("dcm2niix"), tmp_path / "series"]
        outcome = "one of the four sequences: 1 of 1 volumes as dcm2niix has them"
    elif script.stem == "harmonise_sites":
        outcome = "the share of mutants of each site alone: 0.50"
    command = [sys.executable, script, *arguments]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert outcome in ended.stdout


@pytest.mark.slow
def test_patients_of_two_sites_who_share_a_name_keep_their_images(tmp_path: Path) -> None:
    sites = {}
    for name, first in (("a", 0), ("b", 10)):
        sites[name] = [write_study(tmp_path / name, f"sub{one}", seed=first + one) for one in range(2)]
    measured = runpy.run_path(str(ROOT / "examples" / "harmonise_sites.py"))["measured_features"](sites, tmp_path)
    assert len(measured.drop(columns=["mutant", "site"]).round(4).drop_duplicates()) == 4


def told(file: Path) -> str:
    """Text of a file that a person reads; of Python its strings and comments."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return re.sub(r"\{%.*?%\}", "", text, flags=re.DOTALL)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    strings = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    return "\n".join(token.string for token in tokens if token.type in strings)


def test_percent_follows_its_number_without_a_space() -> None:
    endings = {".py", ".j2", ".yaml", ".md", ".svg"}
    files = [
        *PAGES,
        *(file for name in ("idh_lightning", "conf", "docs", "examples") for file in (ROOT / name).rglob("*")),
    ]
    spaced = [
        f"{file.relative_to(ROOT)}: {found[0]!r}"
        for file in files
        if file.suffix in endings
        for found in re.finditer(r".{0,30}[\d}] %(?! *[\d{(]).{0,9}", told(file))
    ]
    assert not spaced

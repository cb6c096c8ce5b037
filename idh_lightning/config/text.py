"""The command line before Hydra reads it: identifiers, paths and words stay text."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.types import Quote, QuotedString

TEXT_KEYS = re.compile(
    r"name|checkpoint|input|flair|t1|t1c|t2|output|runs|other_seeds|permuted_labels|paths\.\w+|split\.(file|site)"
    r"|model\.weights|hydra\.(run|sweep)\.(sub)?dir|logger\.\w+\.(project|entity|group|name)"
    r"|cohort(\.\w+)*\.(name|folder|table|mask|mask_folders|exclude|target|classes|columns(\.\w+)?|vocabulary(\..+)?)"
)
"""Settings that are identifiers, paths and words: text, whatever a number in it looks like to YAML."""

_QUOTED = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
_SPELLING = re.compile(rf"\s*({_QUOTED}|(?:\\.|[^\\,:])+?)\s*:\s*(\w(?:[\w -]*\w)?)\s*(?:,|$)")
_FUNCTION = re.compile(r"(range|interval|sort|shuffle|glob|tag|str|int|float|bool)\(")


def as_text(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which the values of TEXT_KEYS are quoted, so that Hydra cannot take 12_1 for a number.

    Several `cohort.vocabulary={spelling: label}` become one `++cohort.vocabulary={label: [spellings]}`, since Hydra's
    grammar knows neither quotes nor letters like é in the keys of a dictionary. Doing it twice changes nothing.
    """
    vocabularies: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    converted: list[str] = []
    places: dict[str, int] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        key = name.lstrip("+")
        if name.startswith("-") or not equals or not TEXT_KEYS.fullmatch(key):
            converted.append(argument)
        elif key.endswith(".vocabulary") and (pairs := _spellings(value)) is not None:
            if key not in places:
                places[key] = len(converted)
                converted.append("")
            for spelling, label in pairs:
                vocabularies[key][label].append(_in_quotes(spelling))
        else:
            converted.append(f"{'++' + key if '.vocabulary' in key else name}={_quoted_values(value)}")
    for key, labels in vocabularies.items():
        lists = ",".join(f"{label}:[{','.join(spellings)}]" for label, spellings in labels.items())
        converted[places[key]] = f"++{key}={{{lists}}}"
    return converted


def as_typed(argument: str) -> str:
    """Return an override without the quotes that `as_text` put around its value."""
    plain = re.sub(r"^([^=]+)='([^'\\]*)'$", r"\1=\2", argument)
    return plain if as_text([plain]) == [argument] else argument


def _spellings(value: str) -> list[tuple[str, str]] | None:
    """Return the pairs of `{spelling: label, ...}`, or None where the value is not that."""
    text = value.strip()
    pairs = _SPELLING.findall(text[1:-1])
    rest = _SPELLING.sub("", text[1:-1])
    return pairs if pairs and not rest.strip() and (text[0], text[-1]) == ("{", "}") else None


def _quoted_values(value: str) -> str:
    """Return a value of Hydra's grammar with every word in it quoted: alone, in a list, in a dictionary, in a sweep."""
    value = value.strip()
    if choice := re.fullmatch(r"choice\((.*)\)", value):
        return f"choice({_quoted_values(choice[1])})"
    if _FUNCTION.match(value):
        return value
    marks = r",\[\]" if value.startswith("[") else r",:{}\[\]" if value.startswith("{") else ","
    words = re.compile(rf"(?:{_QUOTED})(?=\s*(?:[{marks}]|$))|[{marks}]|(?:\\.|\${{[^}}]*}}|[^{marks}\\])+")

    def quoted(match: re.Match[str]) -> str:
        is_key = value.startswith("{") and value[match.end() :].lstrip().startswith(":")
        word = match[0].strip()
        bare = "" if value.startswith("[") else r"|null|\?\?\?"
        return word if is_key or re.fullmatch(rf"|[{marks}]{bare}", word, re.I) else _in_quotes(word)

    return words.sub(quoted, value)


def _in_quotes(word: str) -> str:
    """Return a word in quotes; one that has quotes already as it is."""
    if re.fullmatch(_QUOTED, word):
        return word
    return QuotedString(re.sub(r"\\([\\()\[\]{}:=, \t])", r"\1", word), Quote.single).with_quotes()


def to_paste(key: str, value: str | Sequence[str] | Mapping[str, str]) -> str:
    """Return an override in the quotes that a shell needs: a word, a list of words, or spellings with their labels.

    >>> to_paste("cohort.exclude", ["12_1"])
    "'cohort.exclude=[12_1]'"
    """
    if isinstance(value, str):
        return shlex.quote(f"{key}={_bare(value)}")
    if isinstance(value, Mapping):
        return shlex.quote(f"{key}={{{', '.join(f'{_bare(word)}: {label}' for word, label in value.items())}}}")
    return shlex.quote(f"{key}=[{','.join(map(_bare, value))}]")


def _bare(word: str) -> str:
    """Return a word without quotes where none are needed."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return word if re.fullmatch(r"[\w.+/-]+( [\w.+/-]+)*", word, re.ASCII) else f'"{escaped}"'

"""Sequence of a series by what its tags say: the words of the description first, then its kind and its times."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

FEWEST_SLICES = 8

UNSTATED = "nothing says whether contrast was given"
"""Part of the reason for a T1 weighting whose tags state neither a contrast agent nor that there was none."""

LONG_ECHO_MS, SHORT_ECHO_MS, PROTON_DENSITY_MS = 60.0, 30.0, 45.0
STIR_MS, T1_INVERSION_MS, FLAIR_INVERSION_MS = 280.0, (300.0, 1300.0), 1500.0


def _words(*patterns: str) -> re.Pattern[str]:
    """Pattern of whole words, where letters and digits make words and `_` separates them."""
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(patterns)})(?![a-z0-9])")


_OTHER = {
    "diffusion": _words(
        r"\w*diffusion\w*", "diff", r"e?dwi\w*", r"dti\w*", "dki", "dsi", "noddi", "ivim", "e?adc", "apparent",
        r"tensor\w*", "fa", r"col\w*fa", r"\w*trace\w?", r"b ?=? ?\d{2,4}", r"\d{2,4} ?b", "b0", r"\d+dirs?", r"dir\d+",
        "dir",
    ),
    "echo-planar": _words(r"\w*ep2d\w*", r"\w*ep3d\w*", r"\w*epi(?:2d)?", "epse", "epfid"),
    "functional": _words(r"r?s?fc?mri\w*", "bold", "rest", r"resting\w*", "rs", "task"),
    "perfusion": _words(
        r"perf\w*", "dsc", "dce", "pwi", r"\w{0,4}asl", "ktrans", "r?cb[fv]", "mtt", "ttp", "tmax", r"dyn\w*",
        "twist", "tricks", "grasp", "oef", "cmro2",
    ),
    "susceptibility or T2*": _words(
        r"swip?\w{0,3}", "swan", "qsm", r"hemo\w*", r"haem\w*", "(?<!black )blood", r"t2 ?w? ?[*]\w*", r"t2 ?w?star\w*",
        "star(?! ?vibe)", "medic", "merge", r"mpgre?", r"veno\w*", "mswi", "r2s?",
    ),
    "angiography": _words("tof", "mr[av]", r"angio\w*", "inhance", "venc", "pcm?ra", "pc3d", "3dpc"),
    "spectroscopy": _words(r"spectro\w*", "mrsi?", "csi", "press", "steam", "svs", "probe"),
    "localizer or calibration": _words(
        r"\w*loc", r"locali[sz]\w*", "local", r"localiza\w*", r"\w*scout\w*", r"survey\w*", r"3 ?-?pl\w*", r"topo\w*",
        "tracker", r"smartbrain\w*", r"calib\w*", "cal", "asset", "prescan", r"shim\w*", "sense ref", "ref ?scan",
        r"coil\w*", r"(?:care ?)?bolus\w*", "zugfahrt", r"reperage\w*", r"centraggio\w*", r"planning\w*", r"\w*setter",
    ),
    "map": _words(
        r"\w*maps?\d*", r"mapping\w*", r"b[01]rf", "b1", r"t[12] ?rho", r"relax\w*", r"t1 images?", "t1map", "cest",
        "apt", "aptw", r"elasto\w*",
    ),
    "neuromelanin": _words("nm", r"neuromel\w*"),
    "MP2RAGE inversion": _words("inv ?[12]"),
    "Dixon fat or opposed phase": _words(r"dixon\w* (?:\w+ )?(?:f|fat|opp\w*|out\w*)"),
    "phase image": _words("pha", "phase", "phs", r"imaginary"),
    "projection or capture": _words(
        r"m[i]?n?ip", "min ip", "mip", "projection", "vrt?", "cpr", r"screen\w*", "save", r"\w*capture\w*",
        r"\w*report",
        r"phoenix\w*", "key images?", r"fused?", "fusion", r"overlay\w*", r"colou?r\w*", r"presentation\w*",
    ),
    "subtraction": _words("subs?(?!-[0-9])", r"subs?tr\w*", r"soustr\w*", r"sottr\w*", r"sustr\w*", "minus"),
    "STIR or double inversion": _words("stir", "double ir", r"double inversion\w*"),
    "steady state": _words("ciss", r"fiesta\w*", r"tru?e?fi\w*", "b ?-?ffe", "balanced", "ssfp", "b?tfe ?mrcp"),
    "motion or flow": _words("cine", "csf ?flow", "flow ?csf"),
    "not the brain": _words(
        r"[ctl]? ?-?spine", r"\w*spinal\w*", "cervical", "lumbar", "thoracic", r"[hbl]ws", r"orbit\w*", "iacs?", "cai",
        "neck", "hals", r"pituitary\w*", r"sella\w*", r"hypophys\w*", r"ipofisi\w*", "tmj", "knee",
    ),
}  # fmt: skip
_GRADIENT_ECHO = _words("m?e?gre", "fgre", "ffe", "tfe", "flash", r"fl[23]d\w*", "grass", "fisp", "mpgr", "gradient")
_DERIVED_KINDS = {
    "SUBTRACTION": ("SUB", "SUBTRACT", "SUBTRACTION"),
    "projection": ("MIP", "MINIP", "MNIP", "MIN IP", "PROJECTION IMAGE", "MAX_IP", "VOLREN", "VRT", "CSA MIP"),
    "diffusion": ("ADC", "TRACEW", "TRACE", "FA", "TENSOR", "TENSOR_B0", "DIFFUSION", "EADC", "MEAN_DIFFUSIVITY"),
    "perfusion": ("PERFUSION", "PERFUSION_ASL", "ASL", "CBF", "RELCBF", "RELCBV", "RELMTT", "TTP", "PBP", "MTT", "CBV"),
    "functional": ("FMRI", "T-TEST", "TTEST", "BOLD"),
    "phase image": ("P", "PHASE", "PHASE MAP", "PHASE_MAP", "PHASE MAP RESCALED", "IMAGINARY", "I", "REAL", "R"),
    "map": ("T1 MAP", "T2 MAP", "T1_MAP", "T2_MAP", "T2_STAR_MAP", "R2_MAP", "R2_STAR_MAP", "B0 MAP", "FIELD_MAP"),
    "susceptibility or T2*": ("SWI", "SW_I", "QSM"),
    "localizer": ("LOCALIZER", "LOCALISER", "POSDISP"),
    "capture": ("SCREEN SAVE", "SCREENSHOT", "CAPTURE", "REPORT"),
    "mosaic": ("MOSAIC",),
    "Dixon fat or opposed phase": ("FAT", "F", "OPP_PHASE", "OUT_PHASE", "OPPOSED_PHASE"),
}  # fmt: skip

# "repeat2", "part1" and the like hold neither T1 nor T2.
_NO_ENDING = r"(?<!repea)(?<!par)(?<!tes)(?<!sho)(?<!poin)(?<!scou)(?<!star)"
_T1, _T2 = (re.compile(rf"{_NO_ENDING}t{n}(?![0-9])|(?<![a-z0-9])t {n}(?![0-9])") for n in "12")
_T1_NAMES = re.compile(
    r"mp[ -]?rage|mp2rage|spgr|fsgpr|bravo|(?<![a-z])tfe|flash|vibe|thrive|lava|"
    r"(?<![a-z0-9])(?:mpr|tfl|fl3d\w*)(?![a-z0-9])"
)
_REFORMATTED = _words("mpr")
_T2_NAMES = _words(r"fr?fse\d?", r"fse\d?", r"tse\d?", "blade", "propeller", "haste", "ssfse")
_FLAIR = re.compile(r"flair|dark[ _-]?fl|(?<![a-z0-9])(?:tirm|flr|spc ir|space ir)(?![a-z0-9])")
_PROTON_DENSITY = _words("pdw?", r"proton\w*", "dp", "rho", r"density\w*")

_AGENT = (
    r"gd\w{0,4}|gad\w*|dotarem|magnevist|prohance|multihance|omniscan|vueway|elucirem|clariscan|artirem|primovist|"
    r"k[.]? ?m|mdc|m[.]d[.]c|civ|cte|contr|contrast\w*|kontr|kontrast\w*|inj|inject\w*|iny\w*|iniet\w*|iv|"
    r"(?<![0-9] )cm|mk|enhanc\w*|c"
)
_NOT_OF_CONTRAST = re.compile(
    r"pos ?disp|(?<![a-z])p(?:ost|re|os) ?-? ?(?:op\w*|surg\w*|radio\w*|rt|rx|xrt|chemo\w*|chir\w*|trauma\w*|proc\w*|"
    r"biops\w*|treat\w*|resect\w*|scan)|posterior|(?<![a-z])w ?/? ?(?:and|&)? ?w ?/? ?o(?:ut)?(?![a-z])"
)
_WITHOUT = _words(
    rf"(?:ohne|keine?|vor|sans|ss|sin|sem|senza|zonder|voor|avant|prima|antes(?: de)?|without|w ?/? ?o|no|non|pre|"
    rf"before|utan|fore|bez|s/)[ ./-]*(?:{_AGENT})", "-(?:c|km|gd)",
    "pre", r"nati[vf]\w{0,2}", "nat", r"basale?", "blanco", r"unenh\w*", "plain", "c-", r"sinc", r"pre ?c\w*",
    r"pregad\w*", "w ?/? ?o",
)  # fmt: skip
_WITH = _words(
    _AGENT, r"\w*post", r"post\w*", "pos", "ce", r"[a-z]?ce", r"enh\w*", r"poscontr\w*", r"apos", r"apres", r"c[+]",
)  # fmt: skip
_NO_AGENT = re.compile(
    r"no?|none|n/?a|not (?:applicable|given|used|applied)|without|keine?s?|nein|aucun|nessuno|ningun[oa]?|geen"
)
_AGENT_NAMED = _words(r"gd|gad\w*|km|mdc|civ|contrast\w*|kontrast\w*|inject\w*")
_PLUS = re.compile(r"[+] ?(?:c|gd|gad\w*|km|k|ce|mdc|civ|contr\w*)(?![a-z])|(?<![a-z])[ck][+]|t1w?[+]")


def _plain(text: str) -> str:
    """Lower-case ASCII text with spaces between words, also where capitals or T1 alone part them."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][A-Za-z0-9])", " ", ascii_text)
    both = f"{ascii_text} | {parted}" if parted != ascii_text else ascii_text
    spaced = re.sub(r"[^a-z0-9+*/=.|-]+", " ", re.sub(r"[,:;()]+", " | ", both.lower()))
    return re.sub(r"(t[12])(?:w(?:i|eighted)?)?(?=[a-z])(?!w(?![a-z]))", r"\1 ", spaced)


def guess_sequence(
    description: str,
    *,
    echo_ms: float | None = None,
    repetition_ms: float | None = None,
    inversion_ms: float | None = None,
    contrast: bool = False,
    slices: int = FEWEST_SLICES,
    image_type: Sequence[str] = (),
    scanning_sequence: str = "",
    b_value: float | None = None,
) -> tuple[str, str]:
    """Sequence that the tags of a series state, "" for none of the four, and what says so.

    Args:
        description: SeriesDescription, or ProtocolName where there is none.
        echo_ms: EchoTime.
        repetition_ms: RepetitionTime.
        inversion_ms: InversionTime.
        contrast: Whether a contrast agent is stated.
        slices: How many there are.
        image_type: ImageType or FrameType.
        scanning_sequence: ScanningSequence, such as "SE" or "GR IR"; EP is echo-planar.
        b_value: Of diffusion, s/mm².
    """
    if slices < FEWEST_SLICES:
        return "", f"{slices} slices"
    text = _plain(description)
    if other := _no_anatomy(text, image_type, scanning_sequence, b_value):
        return "", other
    weighting, why = _weighting(text, scanning_sequence, echo_ms, repetition_ms, inversion_ms)
    if weighting != "T1":
        return weighting, why
    stated = contrast_stated(description)
    if stated is None and contrast:
        return "T1c", f"{why}, contrast agent stated"
    if stated is None and _REFORMATTED.search(text) and not _T1.search(text) and "rage" not in text:
        return "T1c", f"{why}: a reformatted T1 without a word, most often after contrast; {UNSTATED}"
    if stated is None:
        return "T1", f"{why}; {UNSTATED}"
    return ("T1c", f"{why}, contrast in the description") if stated else ("T1", f"{why}, without contrast")


def contrast_stated(description: str) -> bool | None:
    """Whether a description says that contrast was given; None where it says nothing, or both."""
    text = _NOT_OF_CONTRAST.sub(" ", _plain(description))
    left = _WITHOUT.sub(" ", text)
    given = bool(_WITH.search(left) or _PLUS.search(left))
    if left != text:
        return None if given else False
    return True if given else None


def agent_stated(agent: str) -> bool:
    """Whether a ContrastBolusAgent, which is free text, names one; "NONE" and "-" do not."""
    named = any(map(str.isalpha, agent)) and not _NO_AGENT.fullmatch(agent.strip().lower())
    return named and contrast_stated(agent) is not False


def _no_anatomy(text: str, image_type: Sequence[str], scanning_sequence: str, b_value: float | None) -> str:
    """Why a series is none of the four sequences, by its words and kind, or ""."""
    for kind, pattern in _OTHER.items():
        if (found := pattern.search(text)) and not (kind == "diffusion" and found[0] == "b0" and "flair" in text):
            return f"description says {found[0].strip()}: {kind}"
    if b_value:
        return f"diffusion, b = {b_value:g}"
    kinds = {word.upper() for word in image_type[2:]}
    for kind, words in _DERIVED_KINDS.items():
        if stated := kinds.intersection(words):
            return f"image type {'/'.join(sorted(stated))}: {kind.lower()}"
    if "EP" in re.split(r"[^A-Z]+", scanning_sequence.upper()):
        return "echo-planar"
    return ""


def _weighting(
    text: str, scanning_sequence: str, echo_ms: float | None, repetition_ms: float | None, inversion_ms: float | None
) -> tuple[str, str]:
    """FLAIR, T1, T2 or "", and what says so."""
    t1, t2 = _T1.search(text), _T2.search(text)
    short_inversion = inversion_ms is not None and 0 < inversion_ms < STIR_MS
    if _FLAIR.search(text) and not t1:
        if short_inversion:
            return "", f"inversion after {inversion_ms:g} ms: STIR"
        if inversion_ms and T1_INVERSION_MS[0] <= inversion_ms <= T1_INVERSION_MS[1] and (echo_ms or 99) <= 40:
            return "T1", f"description and times (TE {echo_ms:g}, TI {inversion_ms:g} ms: a T1 FLAIR)"
        return "FLAIR", "description"
    if t1 and not (t2 and _T2_NAMES.search(text)):
        return "T1", "description"
    if _PROTON_DENSITY.search(text) and not t2:
        return "", "description says proton density"
    if t2:
        return _t2(text, scanning_sequence, echo_ms, short_inversion)
    if found := _T1_NAMES.search(text):
        return "T1", f"description ({found[0].strip()})"
    if _GRADIENT_ECHO.search(text):
        return "", "description says gradient echo"
    if (found := _T2_NAMES.search(text)) and echo_ms is None:
        return "T2", f"description ({found[0].strip()}, which is T2 where nothing else is said)"
    weighting, why = _by_times(scanning_sequence, echo_ms, repetition_ms or 0.0, inversion_ms or 0.0)
    if not weighting and (echo_ms or 0.0) <= SHORT_ECHO_MS and (found := _AGENT_NAMED.search(text)):
        return "T1", f"description ({found[0].strip()}, and no other weighting)"
    return weighting, why


def _t2(text: str, scanning_sequence: str, echo_ms: float | None, short_inversion: bool) -> tuple[str, str]:
    """Answer where the description says T2: gradient echoes are T2*, a short echo is proton density."""
    kinds = re.split(r"[^A-Z]+", scanning_sequence.upper())
    if (found := _GRADIENT_ECHO.search(text)) or ("GR" in kinds and "SE" not in kinds):
        return "", f"T2 by gradient echoes ({found[0].strip() if found else 'scanning sequence GR'}) is T2*"
    if short_inversion:
        return "", "T2 with a short inversion time: STIR"
    if echo_ms is not None and 0 < echo_ms < PROTON_DENSITY_MS:
        return "", f"echo of {echo_ms:g} ms: proton density"
    return "T2", "description"


def _by_times(scanning_sequence: str, echo_ms: float | None, repetition: float, inversion: float) -> tuple[str, str]:
    """Weighting where the description says nothing.

    A long echo is T2 weighting, with a long inversion time FLAIR; a short echo with a short repetition or inversion
    time is T1 weighting; gradient echoes of a long echo time are T2*.
    """
    kinds = re.split(r"[^A-Z]+", scanning_sequence.upper())
    if echo_ms is None:
        return "", "nothing fits"
    times = ", ".join(f"{name} {ms:g}" for name, ms in (("TE", echo_ms), ("TR", repetition), ("TI", inversion)) if ms)
    if "GR" in kinds and "SE" not in kinds and echo_ms > 12:
        return "", f"gradient echo, TE {echo_ms:g} ms: T2*"
    if echo_ms >= LONG_ECHO_MS and inversion >= FLAIR_INVERSION_MS:
        return "FLAIR", f"times ({times} ms)"
    if echo_ms >= LONG_ECHO_MS and repetition >= 2000 and not 0 < inversion < STIR_MS:
        return "T2", f"times ({times} ms)"
    lowest, highest = T1_INVERSION_MS
    if echo_ms <= SHORT_ECHO_MS and (0 < repetition <= 1200 or lowest <= inversion <= highest):
        return "T1", f"times ({times} ms)"
    return "", "nothing fits"

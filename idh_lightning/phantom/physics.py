"""Signal of the tissues: relaxation times at 3 T and the signal equations of the four sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp, log

from idh_lightning.cohort.study import SEQUENCES

RELAXIVITY_PER_S_MM = 4.5
"""Longitudinal relaxivity of a macrocyclic contrast agent at 3 T, 1/(s mM). Source: Rohrer et al. 2005."""


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Properties of a tissue that enter the signal equations.

    Attributes:
        t1_ms: Longitudinal relaxation time at 3 T without contrast agent.
        t2_ms: Transverse relaxation time.
        density: Proton density relative to water.
        agent_mm: Concentration of contrast agent a few minutes after injection, mmol/L.
        flows: True for blood in large vessels, which leaves no signal in the spin-echo sequences.
    """

    t1_ms: float
    t2_ms: float
    density: float
    agent_mm: float = 0.0
    flows: bool = False

    def watered(self, share: float) -> Tissue:
        """Tissue with both relaxation times longer by `share` of themselves."""
        return replace(self, t1_ms=self.t1_ms * (1 + share), t2_ms=self.t2_ms * (1 + share))


TISSUES: Mapping[str, Tissue] = {
    "white": Tissue(t1_ms=832, t2_ms=80, density=0.70, agent_mm=0.01),
    "grey": Tissue(t1_ms=1331, t2_ms=100, density=0.82, agent_mm=0.015),
    "csf": Tissue(t1_ms=4300, t2_ms=2000, density=1.0),
    "vein": Tissue(t1_ms=1600, t2_ms=60, density=0.85, agent_mm=0.4, flows=True),
    "oedema": Tissue(t1_ms=1400, t2_ms=140, density=0.83, agent_mm=0.01),
    "solid": Tissue(t1_ms=1800, t2_ms=240, density=0.90, agent_mm=0.02),
    "mismatch": Tissue(t1_ms=2800, t2_ms=330, density=0.95),
    "rim": Tissue(t1_ms=1450, t2_ms=190, density=0.88, agent_mm=0.02),
    "enhancing": Tissue(t1_ms=1450, t2_ms=130, density=0.85, agent_mm=0.5),
    "necrosis": Tissue(t1_ms=2300, t2_ms=280, density=0.93, agent_mm=0.01),
    "cyst": Tissue(t1_ms=3700, t2_ms=1000, density=0.98),
    "mark": Tissue(t1_ms=380, t2_ms=110, density=1.0),
}
"""White matter, grey matter, fluid, veins, the compartments of a glioma, and the shortcut's mark.

Source: white and grey matter, Wansapura et al. 1999 (T1 832 and 1331 ms, T2 about 80 and 100 ms); CSF, Lin et al. 2001;
proton densities, Tofts 2003. Glioma: T1 of 1.4-3.2 s and T2 of 115-400 ms are the measured ranges at 3 T (relaxometry
against biopsy and methionine PET); within them each compartment has the value that gives its known look: mismatch core
and cyst close to water, so that they are bright on T2 and suppressed on FLAIR; necrosis between water and tumour;
the non-enhancing solid part darker on T1 and brighter on T2 and FLAIR than the oedema around it, so that an eye can
tell them apart; concentrations from the usual 0.1 mmol/kg dose. The mark is fatty: bright in every sequence.
"""

# Timings of a routine 3 T protocol, ms: T1 and T1c MPRAGE, T2 turbo spin echo, FLAIR.
_MPRAGE_TR, _MPRAGE_TI = 2300.0, 1200.0
_T2_TR, _T2_TE = 5000.0, 95.0
_FLAIR_TR, _FLAIR_TE = 8000.0, 110.0
_CSF_T1 = TISSUES["csf"].t1_ms
# The inversion time at which the signal of CSF passes through zero: 1 - 2 e^(-TI/T1) + e^(-TR/T1) = 0.
_FLAIR_TI = _CSF_T1 * (log(2.0) - log(1.0 + exp(-_FLAIR_TR / _CSF_T1)))


def signal(tissue: Tissue, sequence: str) -> float:
    """Magnitude of a tissue's signal, relative to fully relaxed water at echo time zero.

    The contrast agent counts only in T1c.

    Source: Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004: spin echo (T2), density (1 - e^(-TR/T1))
    e^(-TE/T2); inversion recovery with spin-echo readout (FLAIR), density (1 - 2 e^(-TI/T1) + e^(-TR/T1)) e^(-TE/T2);
    repeated inversion with a readout of small flip angles (MPRAGE), density (1 - 2 e^(-TI/T1) / (1 + e^(-TR/T1))).
    """
    t1, t2 = tissue.t1_ms, tissue.t2_ms
    if sequence == "T1c":
        t1 = 1.0 / (1.0 / t1 + RELAXIVITY_PER_S_MM * tissue.agent_mm / 1000.0)
    if sequence in ("T1", "T1c"):
        return abs(tissue.density * (1 - 2 * exp(-_MPRAGE_TI / t1) / (1 + exp(-_MPRAGE_TR / t1))))
    if tissue.flows:
        return 0.0
    if sequence == "T2":
        return tissue.density * (1 - exp(-_T2_TR / t1)) * exp(-_T2_TE / t2)
    recovered = 1 - 2 * exp(-_FLAIR_TI / t1) + exp(-_FLAIR_TR / t1)
    return abs(tissue.density * recovered) * exp(-_FLAIR_TE / t2)


def signals(tissues: Mapping[str, Tissue]) -> dict[str, dict[str, float]]:
    """Signals by sequence and tissue, in the order of SEQUENCES and of `tissues`."""
    return {sequence: {name: signal(tissue, sequence) for name, tissue in tissues.items()} for sequence in SEQUENCES}

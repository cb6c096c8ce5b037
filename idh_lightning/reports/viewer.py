"""A map over its FLAIR as an interactive page of three planes, which fits into a report."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from nilearn import image, plotting

SPACING_MM = 2.0
"""Viewers sample this finely: at 1 mm one would weigh eight times as much, and the maps are smoother than this."""

_STYLE = """<style>
html { background: #000; color: #d8d8d8; font: 14px system-ui, sans-serif; }
body { margin: 0; }
canvas { display: block; outline-offset: -2px; cursor: crosshair; touch-action: manipulation; }
canvas + div { padding: 2px 10px; } canvas + div p { margin: 6px 0; } .hidden { display: none; }
input[type=range] { accent-color: #e69f00; }
</style>"""

# The library's viewer answers to the mouse only; its own functions redraw it after each key.
_KEYS = """<script>
(function () {
  var canvas = document.querySelector("canvas"), slider = document.querySelector("input[type=range]");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Slices through the cross; arrow keys move it right, left, up and down, " +
    "Page Up and Page Down to the front and back");
  slider.setAttribute("aria-label", "Opacity of the map, percent");
  // Drawn once more when all is loaded: a frame that had no size at first would stay empty.
  addEventListener("load", function () { if (window.viewer) { window.viewer.init(); window.viewer.drawAll(); } });
  canvas.addEventListener("click", function () { canvas.focus({preventScroll: true}); });
  document.addEventListener("keydown", function (event) {
    var brain = window.viewer, move = {ArrowLeft: ["X", -1], ArrowRight: ["X", 1], ArrowDown: ["Z", -1],
      ArrowUp: ["Z", 1], PageDown: ["Y", -1], PageUp: ["Y", 1]}[event.key];
    if (!brain || !move || event.target === slider) { return; }
    event.preventDefault();
    var last = brain.nbSlice[move[0]] - 1;
    brain.numSlice[move[0]] = Math.min(last, Math.max(0, brain.numSlice[move[0]] + move[1]));
    brain.init();
    brain.drawAll();
  });
})();
</script>"""


@dataclass(frozen=True)
class Viewer:
    """An interactive page.

    Attributes:
        page: HTML, for the `srcdoc` of an `iframe`.
        height: Of the slices, as a share of their width; a bar of 40 pixels comes below.
    """

    page: str
    height: float


def slice_viewer(flair: Path, cam: Path, *, floor: float = 0.2, opacity: float = 0.6) -> Viewer:
    """Return a page with axial, coronal and sagittal slices of a FLAIR under its map.

    The page needs no network, shows the patient's right on the left, and follows clicks and the arrow keys.

    Args:
        flair: NIfTI file.
        cam: NIfTI file on the grid of the FLAIR, values 0..1.
        floor: Values below are transparent.
        opacity: Of the map above the floor, 0..1; the reader can change it.
    """
    anatomy = nib.load(flair)
    # The bare array: a scale factor in the header, which many converters write, is applied by get_fdata.
    values = np.nan_to_num(anatomy.get_fdata(dtype=np.float32))
    inside = values[values > values.min()]
    top = float(np.percentile(inside, 99)) if inside.size else 1.0
    anatomy = nib.Nifti1Image(np.clip(values, None, top), anatomy.affine)
    anatomy = image.resample_img(anatomy, target_affine=np.eye(3) * SPACING_MM, interpolation="linear")
    anatomy = image.crop_img(anatomy, rtol=1e-3)
    with warnings.catch_warnings():
        # A map without values below the floor, or without any at all, is shown as it is.
        warnings.simplefilter("ignore")
        overlay = image.resample_to_img(nib.load(cam), anatomy, interpolation="linear")
        page = plotting.view_img(
            overlay,
            bg_img=anatomy,
            cut_coords=_hottest_mm(overlay),
            cmap="inferno",
            symmetric_cmap=False,
            vmin=0,
            vmax=1,
            threshold=floor,
            opacity=opacity,
            black_bg=True,
            radiological=True,
            width_view=900,
        ).get_standalone()
    return _adapted(page, opacity)


def _hottest_mm(overlay: nib.Nifti1Image) -> list[float]:
    data = np.asarray(overlay.dataobj)
    hottest = np.unravel_index(int(np.argmax(data)), data.shape)
    return [float(x) for x in apply_affine(overlay.affine, hottest)]


def _adapted(page: str, opacity: float) -> Viewer:
    """Return the library's page without its link to the network, with keys, and with the cross where it belongs."""
    found = list(re.finditer(r"brainsprite\((\{.*?\})\);", page))
    if len(found) != 1:
        raise RuntimeError(f"nilearn's viewer has {len(found)} places to start it, not 1: adapt reports/viewer.py")
    settings = json.loads(found[0][1])
    # nilearn 0.14.1 mirrors the sprite for radiological=True but neither the first slice nor the millimetres shown,
    # so the cross would start on the other side and x would have the wrong sign.
    last = settings["nbSlice"]["X"] - 1
    settings["numSlice"]["X"] = last - settings["numSlice"]["X"]
    row = settings["affine"][0]
    settings["affine"][0] = [-row[0], row[1], row[2], row[3] + row[0] * (last + 2)]
    # nanValue: the value under the cross is not shown, so it need not be read back from the canvas, which is slow.
    settings |= {"colorCrosshair": "#56B4E9", "smooth": True, "nanValue": True}
    page = page[: found[0].start()] + f"window.viewer = brainsprite({json.dumps(settings)});" + page[found[0].end() :]
    page = re.sub(r'<link rel="icon".*?/>', "", page, flags=re.DOTALL)
    page = page.replace('value="100"', f'value="{round(100 * opacity)}"')
    page = page.replace("</head>", f"{_STYLE}</head>").replace("</body>", f"{_KEYS}</body>")
    x, y, z = (settings["nbSlice"][axis] for axis in "XYZ")
    # The three planes share one scale; a tenth of the height is left for the millimetres below them.
    return Viewer(page, 1.1 * max(y, z) / (2 * x + y))

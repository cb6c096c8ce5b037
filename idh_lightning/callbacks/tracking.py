"""Weights & Biases, offline unless the user is logged in or says so; nothing that names a patient unless allowed."""

from __future__ import annotations

import hashlib
import hmac
import logging
import netrc
import os
import re
import secrets
import shlex
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import pandas as pd
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

if TYPE_CHECKING:
    import wandb

from idh_lightning.config.checks import dotted_keys
from idh_lightning.errors import ConfigError
from idh_lightning.evaluation import read_table
from idh_lightning.files import atomic_write

logger = logging.getLogger(__name__)

_FIGURES: tuple[str, ...] = ("roc", "precision_recall", "confusion_matrix", "reliability", "learning_curves")
"""Figures of a run that show groups of patients only."""

_Mode = Literal["auto", "online", "offline", "disabled"]

_CHECK_S = 5.0
"""Longest time in which the server must answer a request; else the run goes offline."""

_INIT_S = 30.0
"""Longest time in which it must answer then."""


class Tracker(WandbLogger):
    """Lightning's W&B logger, which also takes a finished run's results, as far as the user lets them leave.

    Left out of what W&B records by itself: the console output, the command line, host and folder names, since study
    names may be in all of them.
    """

    def __init__(
        self,
        *,
        run_folder: Path,
        save_dir: str,
        images: bool = False,
        identifiers: bool = False,
        model: bool = False,
        note: str = "",
        **settings: Any,
    ) -> None:
        """See `wandb_logger`; `note` is why the run is offline against its wish, further settings are wandb.init's."""
        if images and not identifiers:
            raise ConfigError(
                "logger.wandb.images: found true with identifiers=false; expected both, since Grad-CAM panels bear the "
                "name of their study. Set logger.wandb.identifiers=true as well, or leave images out."
            )
        wandb = _wandb()
        self.note, self.run_folder = note, run_folder
        self.images, self.identifiers, self.model = images, identifiers, model
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        quiet = wandb.Settings(console="off", disable_git=True, disable_code=True, x_disable_meta=True, host="hidden")
        quiet.init_timeout = _INIT_S
        if "WANDB_SWEEP_ID" not in os.environ:  # the agent of a W&B sweep names its runs itself
            # A resumed run goes on under its name.
            name = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
            settings |= {"id": name, "resume": "allow"}
        super().__init__(save_dir=save_dir, log_model=False, settings=quiet, **settings)
        self._wandb_init.pop("anonymous")  # lightning 2.6.6 sets it; wandb 0.31 warns of it

    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """The run of W&B; offline, with a word about it, where the server does not take it."""
        if self._experiment is None:
            try:
                _ = super().experiment
            except _wandb().errors.Error as error:  # no answer, a key that is not valid, no leave for the project
                if self._wandb_init["mode"] == "offline":
                    raise
                self.note = " ".join(str(error).split())
                logger.warning("Weights & Biases cannot be had (%s); going on offline.", self.note)
                finish_tracking()
                self._wandb_init["mode"] = "offline"
                if self._wandb_init.get("id"):
                    self._wandb_init["id"] += "-offline"  # the first one is still in use
                _ = super().experiment
            if self._wandb_init["mode"] == "offline":
                folder = Path(self._experiment.dir).parent  # type: ignore[attr-defined]
                logger.info("Weights & Biases is offline; later: wandb sync %s", shlex.quote(str(folder)))
        return self._experiment

    def log_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Record the configuration without folders, files and identifiers of excluded patients.

        Keys are flat, `optimizer.lr`, as in a sweep that W&B leads: what parallel coordinates and importance offer.
        """
        keys = dotted_keys(without_places(recipe))
        self.log_hyperparams({key: value for key, value in keys.items() if not isinstance(value, Mapping)})

    def log_results(self, metrics: Mapping[str, Any]) -> None:
        """Record metrics.json, figures, predictions and, where allowed, their panels and the model."""
        wandb, run = _wandb(), self.experiment
        for split in ("validation", "test"):
            for name, entry in metrics.get(split, {}).items():
                if isinstance(entry, Mapping) and entry.get("value") is not None:
                    for end in ("value", "low", "high", "n"):
                        run.summary[f"{split}/{name}/{end}"] = entry.get(end)
        for name in _FIGURES:
            if (file := self.run_folder / "figures" / f"{name}.png").is_file():
                run.log({f"figures/{name}": wandb.Image(str(file))})
        run.log({"predictions": self._predictions()})
        if self.model:
            scores = {f"test/{name}": one["value"] for name, one in metrics.get("test", {}).items() if "value" in one}
            metadata = scores | {"target": metrics.get("target", {}).get("name")}
            artefact = wandb.Artifact(f"model-{self.version}", type="model", metadata=metadata)
            artefact.add_file(str(self.run_folder / "checkpoints" / "best.ckpt"))
            run.log_artifact(artefact, aliases=["best", "latest"])  # the names that Lightning gives

    def _predictions(self) -> Any:
        """Predictions as far as they may leave, each beside its panel where images may."""
        wandb, predictions = _wandb(), read_table(self.run_folder / "predictions.csv")
        table = wandb.Table(dataframe=self._with_allowed_names(predictions))
        if self.images:
            panels = {file.stem: str(file) for file in (self.run_folder / "figures" / "cam").glob("*.png")}
            shown = [wandb.Image(panels[name]) if name in panels else None for name in predictions["study_id"]]
            table.add_column("panel", shown, optional=True)
        return table

    def _with_allowed_names(self, predictions: pd.DataFrame) -> pd.DataFrame:
        if self.identifiers:
            return predictions
        key = self._key()

        def hidden(name: object) -> str:
            return hmac.new(key, str(name).encode(), hashlib.sha256).hexdigest()[:12]

        return predictions.assign(**{column: predictions[column].map(hidden) for column in ("study_id", "patient_id")})

    def _key(self) -> bytes:
        """Key of the hashes, which stays in the run folder; without it names could be tried out."""
        file = self.run_folder / "tracking_key"
        if not file.is_file():
            with atomic_write(file) as temporary:
                temporary.write_bytes(secrets.token_bytes(32))
        return file.read_bytes()


def wandb_logger(
    *,
    run_folder: Path,
    save_dir: str,
    project: str = "idh_lightning",
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    mode: _Mode = "auto",
    images: bool = False,
    identifiers: bool = False,
    model: bool = False,
) -> Tracker | None:
    """Logger that uploads only if the user asked for it; None where tracking is disabled.

    `save_dir` holds W&B's own files, which `wandb sync` can upload later; project, name, group and job_type are
    `wandb.init`'s. For mode see `tracking_mode`. Grad-CAM panels, which show slices and the name of the study, are
    recorded with `images`, study and patient identifiers instead of keyed hashes with `identifiers`, and best.ckpt as
    an artefact with `model`, under the aliases best and latest.

    Raises:
        ConfigError: If images are allowed and identifiers are not; and see `tracking_mode`.
    """
    mode, note = tracking_mode(mode), ""
    if mode == "disabled":
        logger.info("Weights & Biases is disabled: nothing is written for it.")
        return None
    if mode == "online" and (why := _unreachable(os.environ.get("WANDB_BASE_URL") or _wandb().Settings().base_url)):
        logger.warning("Weights & Biases cannot be had (%s); going on offline.", why)
        mode, note = "offline", why
    allowed: dict[str, Any] = {"images": images, "identifiers": identifiers, "model": model}
    settings: dict[str, Any] = {"project": project, "name": name, "group": group, "job_type": job_type, "mode": mode}
    return Tracker(run_folder=run_folder, save_dir=save_dir, note=note, **allowed, **settings)


def without_places(recipe: Any, key: str = "") -> Any:
    """Configuration, or the value of a key, without places and identities: paths, files, excluded patients."""
    if isinstance(recipe, Mapping):
        kept = {name: value for name, value in recipe.items() if name not in ("paths", "checkpoint")}
        return {name: without_places(value, str(name)) for name, value in kept.items()}
    if isinstance(recipe, list):
        many = f"{len(recipe)} studies or patients"
        return many if key == "exclude" else [without_places(value, key) for value in recipe]
    place = isinstance(recipe, str) and (key in _PLACES or _PLACE.search(recipe)) and not _METRIC.fullmatch(recipe)
    return "(a path)" if place else recipe


_PLACES = ("table", "folder", "file", "aliases", "save_dir")
"""Settings that name a file or folder, which may lie in the working folder."""

_PLACE = re.compile(
    r"[/\\]|\.(csv|tsv|xlsx?|parquet|json|pth?|pt2|ckpt|onnx|safetensors|bin|nii(\.gz)?)$", re.IGNORECASE
)
"""What tells that a text names one."""

_METRIC = re.compile(r"(train|val)/\w+")
"""Name of a metric in a log."""


_MODES = ("online", "offline", "disabled", "shared", "run", "dryrun")
"""That W&B knows, by the variable WANDB_MODE."""


def tracking_mode(mode: _Mode) -> _Mode:
    """Mode of tracking in this environment, without asking the network or the user.

    What the configuration says comes first, then WANDB_MODE and WANDB_DISABLED; else it is online if an API key is set
    or was stored by `wandb login`, and offline without.

    Raises:
        ConfigError: If wandb cannot be imported, or is to be online without an API key.
    """
    said = os.environ.get("WANDB_MODE", "").lower()
    if mode == "auto" and (said == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")):
        return "disabled"
    if mode == "disabled":
        return mode
    if mode == "auto" and said not in ("", *_MODES):
        raise ConfigError(
            f"WANDB_MODE: found '{said}'; expected one of {', '.join(_MODES)}, since nothing is uploaded on a guess. "
            "Correct the variable, unset it, or say logger.wandb.mode=offline"
        )
    _wandb()
    if mode == "auto" and said in ("offline", "dryrun"):
        return "offline"
    if _logged_in():
        return "offline" if mode == "offline" else "online"
    if mode == "online" or said in ("online", "run", "shared"):
        asked = "logger.wandb.mode=online" if mode == "online" else f"WANDB_MODE={said}"
        raise ConfigError(
            f"logger.wandb.mode: found {asked} and no API key; expected one. Give it with `wandb login` or "
            "WANDB_API_KEY=..., or record the run here: logger.wandb.mode=offline"
        )
    return "offline"


def finish_tracking() -> None:
    """End the run of W&B that is open in this process, if there is one; the next would else go on in its record."""
    if "wandb" in sys.modules:
        _wandb().finish()


def _wandb() -> Any:
    try:
        import wandb
    except Exception as error:  # whatever a broken installation raises
        raise ConfigError(
            f"logger: wandb cannot be imported ({type(error).__name__}: {error}); expected the package, which only "
            "logger=wandb needs. pip install --upgrade wandb, or choose logger=csv"
        ) from error
    return wandb


def _unreachable(address: str) -> str:
    """Return why a server, or the proxy before it, answers no request, or "" if it does, whatever it says."""
    host = urlparse(address).hostname
    found = [f"{host} did not answer within {_CHECK_S:g} s"]

    def ask() -> None:
        try:
            urlopen(address, timeout=_CHECK_S).close()
            found[0] = ""
        except HTTPError:
            found[0] = ""
        except OSError as error:
            found[0] = f"{host}: {getattr(error, 'reason', error)}"

    # Looking a name up takes no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_CHECK_S)
    return found[0]


def _logged_in() -> bool:
    """Whether an API key is at hand, without asking the network or the user."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)

"""Weights & Biases, if asked for (`telemetry.wandb=PROJECT`): the same curves and pictures there.

Whatever goes wrong with the service is said once, and training goes on without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from more.config.load import to_dict
from more.config.schema import Config
from more.data.shards.format import to_json, write_atomic
from more.errors import UserError

RECORD = "wandb.json"
"""File of the run folder that keeps the id, so that a resumed run goes on as the same one."""
WAIT = 60.0
"""Most seconds to wait for the service at the start and at the end."""


def check_wandb(project: str) -> None:
    """The package must be there if it is asked for.

    Args:
        project: `telemetry.wandb`; "" asks for nothing.

    Raises:
        UserError: it is not installed.
    """
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(f"telemetry.wandb = {project!r} needs the package wandb, which is not "
                        "installed", 'pip install ".[wandb]", or leave telemetry.wandb out')


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Let no error of the service out: say it, once, and report nothing more."""
    @wraps(method)
    def guarded(self: WandbLog, *arguments: Any) -> None:
        """The method, unless something went wrong before."""
        if self.broken:
            return
        try:
            method(self, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever the client or its network throws
            self.broken = True
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self.say(f"warning: Weights & Biases gets nothing more of this run ({why}); "
                     "training goes on, RUN/log.jsonl and TensorBoard have everything")
    return guarded


class WandbLog:
    """One run of a project; on a resumed training the same run as before.

    Args:
        run: run folder; the client writes into `RUN/wandb` unless WANDB_DIR names another.
        config: settings.
        about: what else the run's page shows of its start.
        say: told where the run is seen, or what went wrong.

    Attributes:
        broken: whether something went wrong, so that nothing more is reported.
    """

    def __init__(self, run: Path, config: Config, about: Mapping[str, Any],
                 say: Callable[[str], None]):
        self.run, self.config, self.say, self.broken = run, config, say, False
        self.client: Any = None
        self._start(about)

    @_harmless
    def _start(self, about: Mapping[str, Any]) -> None:
        """Log in without a prompt and open the run."""
        import wandb

        mode = wandb.setup().settings.mode
        # Without a prompt: a training that waits for an answer would keep all ranks waiting.
        if mode in ("online", "run") and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("not logged in: `wandb login`, or WANDB_MODE=offline")
        project = self.config.telemetry.wandb
        # Captured output would go through the client's pipes, and the live line with it.
        # The other ranks wait meanwhile, and not for ever.
        wait = min(WAIT, 30 * self.config.deepspeed.timeout_minutes)
        settings = wandb.Settings(init_timeout=wait, finish_timeout=WAIT, console="off",
                                  quiet=True)
        self.client = wandb.init(
            project=project, id=kept_id(self.run, project), resume="allow", name=self.config.name,
            dir=os.environ.get("WANDB_DIR", str(self.run)), settings=settings,
            config={**to_dict(self.config), **about}, allow_val_change=True)
        # An axis of our own: a run that goes back to a checkpoint reports some updates again,
        # and the client drops what comes before its own last step.
        self.client.define_metric("update")
        self.client.define_metric("*", step_metric="update")
        offline = self.client.settings.mode not in ("online", "run")
        self.say("Weights & Biases: " + (
            f"{self.client.settings.mode}, in {self.client.dir}; `wandb sync` sends it later"
            if offline else str(self.client.url)))

    @_harmless
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves.

        Args:
            step: finished updates.
            values: numbers by the names of their curves.
        """
        self.client.log({**values, "update": step})

    @_harmless
    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures of the validation set.

        Args:
            step: finished updates.
            pictures: RGB uint8 `[H, W, 3]` by the images' ids.
        """
        import wandb

        self.client.log({**{f"pictures/{name}": wandb.Image(picture, caption=name)
                            for name, picture in pictures.items()}, "update": step})

    @_harmless
    def close(self, state: str) -> None:
        """End the run's report.

        Args:
            state: as in `status.json`.
        """
        self.client.finish(exit_code=1 if state == "failed" else 0)


def kept_id(run: Path, project: str) -> str:
    """The id of a run folder's run in a project; a new one is written down before it is used.

    Args:
        run: run folder.
        project: `telemetry.wandb`.

    Returns:
        12 hex digits.
    """
    path = run / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["project"] == project:
            return str(record["id"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not readable: a new run of the project
    number = uuid.uuid4().hex[:12]
    write_atomic(path, to_json({"id": number, "project": project}))
    return number

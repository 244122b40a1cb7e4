"""One training in a run folder: a second one is refused, a killed one gives its place up."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from more.data.shards.lock import LOCK, folder_lock
from more.errors import UserError
from more.train.distributed import World

DYING = 30.0
"""Seconds to wait for what a killed training has left: its loader processes hold the lock for the
moments until they notice."""
ELSEWHERE = 120.0
"""Seconds to wait for another host's place where torchrun has begun the ranks again."""


@contextmanager
def sole_training(run: Path, world: World) -> Iterator[None]:
    """Hold the only training's place in a run folder; rank 0 does, for all ranks.

    Args:
        run: run folder.
        world: ranks; all of them enter.

    Yields:
        Nothing.

    Raises:
        UserError: another training is in it (names its process and host); on every rank.
    """
    told = None
    with ExitStack() as held:
        if world.main:
            try:
                held.enter_context(_patient_lock(run))
            except UserError as error:
                told = f"{run}: is taken by another training ({error.message})", error.fix
        told = world.agree(told)
        if told is not None:
            raise UserError(*told)
        yield


@contextmanager
def _patient_lock(run: Path) -> Iterator[None]:
    """`folder_lock`, waiting for owners that are gone but do not show it yet."""
    started = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(folder_lock(run))
                break
            except UserError:
                if time.monotonic() - started > _patience(_owner(run / LOCK)):
                    raise
                time.sleep(0.5)
        yield


def _patience(owner: dict[str, Any]) -> float:
    """How long an owner of the lock may be waited for."""
    if not owner:  # it has just ended, or just begun
        return 1.0
    if owner.get("host") != socket.gethostname():
        restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return ELSEWHERE if restarted else 0.0
    return 0.0 if os.path.exists(f"/proc/{owner.get('pid')}") else DYING


def _owner(path: Path) -> dict[str, Any]:
    """What a lock file says; empty where it is gone or says nothing readable."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}

"""Run the stages one after another, each in processes of its own; what is complete is skipped."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from more.data.shards.format import make_folder, to_json, write_atomic
from more.errors import UserError
from more.pipeline.stages import Stage
from more.progress import NEXT_LINES, say
from more.run_folder import read_status

RECORD = "stages.json"
"""In the run folder: the recipe, and by name of a stage its command line, inputs and exit code."""
STOPPED, SOME_FAILED = 75, 1
"""Exit codes of a training that was asked to stop, and of a job some of whose images failed."""


def read_record(run: Path) -> dict[str, Any]:
    """What earlier calls of `more run` noted in a run folder; empty where there was none."""
    try:
        found = json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def note(run: Path, **facts: Any) -> None:
    """Add to the record of a run."""
    make_folder(run)
    write_atomic(run / RECORD, to_json({**read_record(run), **facts}))


def run_stages(run: Path, stages: Sequence[Stage], ranks: int, inputs: str = "") -> int:
    """Run what is not complete yet, in order.

    A stage is complete when its result is there and an earlier call ended the same command line
    on the same inputs. Once one has to run, those after it run, too: what they have made may be
    of something else now. Commands skip by themselves what they have done, so a stage that was cut
    off goes on, and they refuse results that were made from something else.

    Args:
        run: run folder, which has the record.
        stages: what to run.
        ranks: processes of a stage that is spread over GPUs.
        inputs: digest of what the command lines name alone: images and settings.

    Returns:
        1 if images failed in some stage, 75 if a training was asked to stop, else 0.

    Raises:
        UserError: a stage failed; names its command.
    """
    code = 0
    for place, stage in enumerate(stages):
        done, line = read_record(run).get("done", {}), stage.line(ranks)
        earlier, made = done.get(stage.name, {}), {"line": stage.line(), "inputs": inputs}
        if not stage.always and stage.present() and made.items() <= earlier.items():
            failed = f", but for images that failed; to try them: {line}" if earlier["code"] else ""
            say(f"== {stage.name}: complete{failed}")
            code = max(code, earlier["code"])
            continue
        say(f"== {stage.name}\n{line}")
        later = {other.name for other in stages[place:]}
        done = {name: facts for name, facts in done.items() if name not in later}
        note(run, done=done)  # before it starts: it may be killed when it has changed its result
        ended = start_stage(stage, ranks)
        if ended == 0 and stage.trains and read_status(stage.result).get("state") == "stopped":
            ended = STOPPED  # under torchrun a stopped rank ends with 0
        if ended == STOPPED and stage.trains:
            return STOPPED
        if ended != 0 and not (ended == SOME_FAILED and stage.tolerant):
            raise UserError(f"{stage.name} ended with code {ended}: {line}",
                            "see its message above; then the same command goes on from here, or "
                            "give another --run")
        note(run, done={**done, stage.name: {**made, "code": ended}})
        code = max(code, ended)
    return code


def start_stage(stage: Stage, ranks: int) -> int:
    """Run a stage in a session of its own, so that Ctrl-C and SIGTERM reach this process alone.

    A training is then asked to stop, by the file `RUN/stop`: it writes a checkpoint first, with any
    number of ranks. Other stages, and a training at the second signal, are ended at once.

    Returns:
        The exit code; that of a signal as a shell gives it.
    """
    asked = 0
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", NEXT_LINES: "off"}
    words = [sys.executable, "-m", *_launched(stage, ranks)]

    def ask(number: int, _: object) -> None:
        """Handle a signal: first a request to stop, then an end at once."""
        nonlocal asked
        asked += 1
        if stage.trains and asked == 1:
            say("asked to stop: it writes a checkpoint after this update (once more: end at once)")
            return
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(child.pid, signal.SIGKILL if asked > 2 else signal.SIGTERM)

    # Begun before the handlers are set: a signal in between ends this process alone.
    child = subprocess.Popen(words, env=environment, start_new_session=True, stdout=sys.stderr,
                             preexec_fn=_end_with_parent)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while child.poll() is None:
            if asked and stage.trains and stage.result.is_dir():
                (stage.result / "stop").touch()  # again: one that just starts removes an old file
            time.sleep(0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            (stage.result / "stop").unlink(missing_ok=True)
    if asked and not stage.trains:
        say(f"{stage.name} was ended; the same command goes on from here")
        raise SystemExit(128 + signal.SIGTERM)
    if asked and child.returncode == 0:
        return STOPPED  # it came to its end meanwhile; the stages after it are not to begin
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM when the process that began this one dies, however it dies."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _launched(stage: Stage, ranks: int) -> list[str]:
    """What follows `python -m`."""
    if not stage.spread or ranks == 1:
        return list(stage.words)
    module, *rest = stage.words
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", module,
            "--", *rest]

"""The training loop: next batch → terms of the stage → backward → update → record.

In reading order: what a run is made of (`_source`, `_build`, `_resume`), the loop over updates
(`fit`, `_loop`), one update (`_step`, `_pass`), and what comes between updates: scores, checkpoints
and records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from more import run_folder
from more.config.load import to_dict
from more.config.schema import Config
from more.data.shards.quarantine import Damaged
from more.data.shards.reader import ShardSet
from more.device import allow_tf32
from more.train import checkpoint
from more.train.average import average_of
from more.train.checkpoint_files import Writer, prune, write_best
from more.train.checks import (
    check_best,
    check_classes,
    check_continues,
    check_same_model,
    out_of_memory,
)
from more.train.deepspeed_settings import split_batch
from more.train.distributed import World, settled_here
from more.train.engine import make_engine
from more.train.live_line import Status
from more.train.meter import BACKWARD, REST, UPDATE, WAITING, Means, Meter, Trace
from more.train.optimizer import poisoned
from more.train.rewind import go_back, resolve
from more.train.safety import Guard, Watchdog
from more.train.stage_one import TagStage
from more.train.stage_two import MaskStage, check_start
from more.train.stop import StopRequest
from more.train.telemetry import Records, describe_run
from more.train.val_pictures import ValPictures
from more.train.validation import validate


class Fetched(NamedTuple):
    """An update's micro-batches on the device, their rows in the training set, and the seconds that
    this rank waited for them.
    """

    passes: list[dict[str, Any]]
    rows: list[int]
    waited: float


class Trainer:
    """One run: network, stage, DeepSpeed engine, data and records.

    Args:
        config: settings.
        train_set: shard set with images and tags.
        val_set: shard set with images and masks, or None.
        run: run folder.
        world: this rank among its peers.
        resume: `auto`, `never` or a checkpoint folder.
        left_out: images of the training set that are damaged and left out.
        masks: shard set to train on masks (stage two), or None for training on tags.
        init: run folder or exported file that stage two starts from.
        stop: whether somebody asked the run to stop; None: signals count while it trains.

    Raises:
        Stopped: on request, before the first update.
        UserError: settings, data or checkpoint do not fit together.
    """

    def __init__(self, config: Config, train_set: ShardSet, val_set: ShardSet | None, run: Path,
                 world: World, resume: str = "auto", left_out: Sequence[Damaged] = (),
                 masks: ShardSet | None = None, init: Path | None = None,
                 stop: StopRequest | None = None):
        config = settled_here(config, world.device, world.local_size, world)
        allow_tf32(config.train.tf32, world.device)
        check_classes(config, train_set, val_set)
        self.config, self.run, self.world = config, run, world
        self.stage = (TagStage(config, train_set, run, world) if masks is None
                      else MaskStage(config, train_set, masks, run, world, init))
        self.stop = self.stage.stop = stop or StopRequest()
        self.stop.join(run, world)
        check_best(config, self.stage.routes)
        self.train_set, self.val_set = self.stage.images, val_set
        self.split = split_batch(config.train.global_batch, world.size, config.train.micro_batch)
        source = self._source(resume)
        self._build(source)
        self._resume(source)
        if world.main:
            describe_run(self.records, config, world, self.split, self.engine.module,
                         self.train_set, val_set, self.stage.sources, left_out,
                         self.stage.routes)

    def _source(self, resume: str) -> Path | None:
        """The checkpoint that the run goes on from, which must fit; None starts afresh.

        Opens the records, and sets aside what the run did after an earlier checkpoint.
        """
        config, run, world = self.config, self.run, self.world
        source, rejected = world.agree(resolve(run, resume) if world.main else None)
        if source is not None:
            check_same_model(config, source)
            check_continues(config, self.train_set, source)
            checkpoint.check_precision(source, config.precision, config.deepspeed.zero_stage)
            if isinstance(self.stage, MaskStage):
                check_start(source, self.stage.record, run_folder.info(source))
        left = go_back(run, source, resume, world)
        self.records = Records(run, world.main, config.train.iterations,
                               run_folder.step_of(source) if source else 0)
        for reason in [*(f"not resumed: {reason}" for reason in rejected), *left]:
            self.records.say(reason)
        return source

    def _build(self, source: Path | None) -> None:
        """Network and engine, with the weights of the checkpoint, and what serves the loop."""
        config, run, world = self.config, self.run, self.world
        self.engine = make_engine(config, self.split, world, self.stage, self.records.say,
                                  checkpoint.training_weights(source) if source else None)
        self.average = average_of(self.engine, config.train.ema) if config.train.ema else None
        self.stage.connect(self.engine, self.average)
        self.writer = Writer(run / "checkpoints", config.checkpoint.keep, world,
                             config.checkpoint.background)
        self.guard = Guard(run, config.train.skip_nonfinite, config.precision == "fp16")
        self.status = Status(run, config.train.iterations)
        self.pictures = ValPictures(self.val_set, config, world, self.stage.routes)
        self.trace = Trace(config.train.profile, run, world.device, self.records.say, world.main)

    def _resume(self, source: Path | None) -> None:
        """Put back the rest of the checkpoint's state: moments, schedule, random numbers."""
        # Updates that are done, that are saved, and that a complete checkpoint has.
        self.start, self.saved, self.on_disk = 0, -1, 0
        if source is not None:
            self.start = checkpoint.restore(self.engine, source, self.world, self.average)
            self.saved = self.on_disk = self.start
            self.records.say(f"resumed after {self.start} updates from {source}")

    def fit(self) -> str:
        """Train to the last iteration, or until a stop is asked for.

        Returns:
            "finished" or "stopped".
        """
        state = "failed"
        watchdog = Watchdog(self.run, self.world.rank, self.config.deepspeed.timeout_minutes * 60)
        self.stop.at_once = False  # from now on there is something to lose
        self._status("running", self.start)
        try:
            with self.stop:
                try:
                    state = self._loop(watchdog)
                finally:
                    # In here, where signals wait: a launcher ends all ranks as soon as one fails.
                    if state == "failed":
                        self._status(state, max(self.start, self.saved))
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, self.split) from error
        finally:
            watchdog.close()
            self.records.close(state)
            self.engine.destroy()
        return state

    def _loop(self, watchdog: Watchdog) -> str:
        """All updates that are left; as `fit`."""
        train, meter = self.config.train, Meter(self.world.device)
        means = Means(meter, late=self.world.device.type == "cuda")
        self.stage.mark = meter.phases.mark
        if self.stop.agreed():
            return self._stopped(self.start)
        if self._missed_evaluation() and self._evaluate(self.start):
            return self._stopped(self.start)
        self.records.updates_begin(self.config)
        batches = iter(self.stage.batches(self.split, self.start))
        for step in range(self.start, train.iterations):
            watchdog.rearm()
            self.trace.before(step)
            self._step(step, batches, means)
            watchdog.disarm()
            self.trace.after(step)
            done = step + 1
            self._alive(done, meter)
            every = train.log_every, self.config.checkpoint.every, self.config.eval.every
            record, save, score = (self._due(done, updates) for updates in every)
            if record or save or score:
                means.flush()
            if record:
                self._record(done, meter)
            # Saved first: whatever goes wrong in an evaluation, the updates are not lost.
            if means.stopping or save:
                self._save(done)
            if means.stopping and done < train.iterations:
                return self._stopped(done)
            if score and self.val_set is not None:
                if self._evaluate(done) or (done < train.iterations and self.stop.agreed()):
                    return self._stopped(done)
                meter.restart()
                self.records.paused()
        self.trace.close(train.iterations)
        self.writer.finish()
        self._status("finished", train.iterations)
        return "finished"

    def _stopped(self, done: int) -> str:
        """Save, where there is something to save and that is not done, and say so."""
        if done:
            self._save(done)
        self.trace.close(done)
        self.writer.finish()
        self._status("stopped", done)
        self.records.say(f"stopped on request after {done} updates; the same command goes on from "
                         "here")
        return "stopped"

    def _missed_evaluation(self) -> bool:
        """Whether the start before this one ended between its last update and the scores."""
        due = self.start and self.val_set is not None and self._due(self.start,
                                                                    self.config.eval.every)
        return bool(due) and not self.world.agree(
            self.world.main and self.records.evaluated(self.start))

    def _step(self, step: int, batches: Iterator[dict[str, Any]], means: Means) -> None:
        """One update of all ranks."""
        self._update(step, self._fetch(batches), means)

    def _fetch(self, batches: Iterator[dict[str, Any]]) -> Fetched:
        """The images of an update, on the device."""
        waited, passes, rows = 0.0, [], []
        for _ in range(self.split.accumulation):
            self.stage.mark(WAITING)
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            rows += batch["indices"].tolist()
            passes.append(self.stage.taken(batch))
        return Fetched(passes, rows, waited)

    def _update(self, step: int, fetched: Fetched, means: Means) -> None:
        """Forward, backward and new weights, from images that are on the device."""
        passes, rows, waited = fetched
        terms = [self._pass(*part) for part in self.stage.terms(passes, step)]
        self.stage.mark(REST)
        own = terms[0] if len(terms) == 1 else {
            name: torch.stack([part[name] for part in terms]).mean() for name in terms[0]}
        request = torch.full((), float(self.stop.asked()), device=self.world.device)
        means.put(list(own), self.world.mean(torch.stack([*own.values(), request])),
                  self.split.global_batch, waited)
        # Known already: an optimiser reads whether its gradient is finite before it updates, since
        # weights, schedule and average all depend on it.
        if self.engine.was_step_applied():
            if self.average is not None:
                self.average.update()
        else:
            path = self.guard.left_out(step, [self.train_set.ids[row] for row in rows],
                                       {name: float(value) for name, value in own.items()},
                                       self.world)
            if path is not None:
                self.records.say(f"iteration {step} is left out: not finite, see {path}")

    def _pass(self, terms: dict[str, torch.Tensor], anchor: torch.Tensor
              ) -> dict[str, torch.Tensor]:
        """Backward of one micro-batch; DeepSpeed updates when it is due."""
        self.stage.mark(BACKWARD)
        self.engine.backward(poisoned(terms["total"], anchor))
        self.stage.mark(UPDATE)
        self.engine.step()
        return {name: value.detach().float().reshape(()) for name, value in terms.items()}

    def _evaluate(self, done: int) -> bool:
        """Score the weights; whether somebody asked to stop meanwhile, and there are no scores."""
        if self.average is None:
            scores = self._scores(done)
        else:
            with self.average.in_place():
                scores = self._scores(done)
        self.engine.train()
        if scores is None:
            return True
        self.records.write(done, {"eval": scores})
        self.records.say(f"[{done}] validation mIoU: " + ", ".join(
            f"{name} {value:.1f}" for name, value in scores.items()))
        metric = self.config.checkpoint.best
        if metric in scores:
            best = self.world.agree(run_folder.read_best(self.writer.folder))
            if best is None or scores[metric] > best["score"]:
                self._save(done)
                self.writer.finish()
                if self.world.main:
                    write_best(self.writer.folder, metric, scores[metric], done)
                    prune(self.writer.folder, self.config.checkpoint.keep)
        return False

    def _scores(self, done: int) -> dict[str, float] | None:
        """Scores of the weights as they are, and pictures of what they give."""
        scores = validate(self.engine.module, self.val_set, self.config, self.world,
                          self.stage.routes, self.stop.agreed)
        if scores is not None:
            self.records.show(done, self.pictures.draw(self.engine.module))
        return scores

    def _save(self, done: int) -> None:
        """Write a checkpoint of these updates, unless there is one."""
        if self.saved == done:
            return
        self.writer.save(checkpoint.take(self.engine, done, self.world, self.average,
                                         {"config": to_dict(self.config),
                                          "classes": self.train_set.class_names,
                                          **self.stage.record}))
        self.saved = done
        if not self.config.checkpoint.background:  # else it is not on the disk yet
            self._status("running", done)

    def _status(self, state: str, step: int) -> None:
        """Say in `status.json` how far the run is."""
        if self.world.main:
            self.status.write(state, step)

    def _alive(self, done: int, meter: Meter) -> None:
        """Show that an update is made, on the terminal and in `status.json`."""
        self.records.progress(done, meter)
        if not self.writer.busy:
            self.on_disk = max(self.saved, 0)
        if self.world.main:
            self.status.update(done, self.on_disk)

    def _due(self, done: int, every: int) -> bool:
        """Whether something is due that comes every so many updates, and at the end."""
        return done == self.config.train.iterations or (every > 0 and done % every == 0)

    def _record(self, done: int, meter: Meter) -> None:
        """Write what was measured since the last record."""
        record = meter.read(self.world)
        record["lr"] = {group["name"]: group["lr"] for group in self.engine.optimizer.param_groups}
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            norm = getattr(self.engine.optimizer, "norm", None)
        if norm is not None:
            record["grad_norm"] = float(norm)
        record["skipped"] = self.engine.skipped_steps
        self.records.write(done, record)
        self.records.line(done, record)


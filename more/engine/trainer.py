"""The training loop: next batch → forward → CAMs → objective → backward → update → record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from more.config.load import to_dict
from more.config.schema import Config
from more.data.colours import prepare
from more.data.loader import Reading, make_train_loader
from more.data.shards.quarantine import Damaged
from more.data.shards.reader import ShardSet
from more.engine import checkpoint, folders
from more.engine.average import WeightAverage
from more.engine.build import make_engine, make_objective, make_plan, make_transform
from more.engine.cams import CamMaker
from more.engine.checks import check_classes, check_same_model, out_of_memory
from more.engine.distributed import World
from more.engine.guard import Guard, poisoned
from more.engine.settings import split_batch
from more.engine.stop import StopRequest, write_status
from more.engine.telemetry import Meter, Records, describe_run
from more.engine.validate import validate
from more.engine.watchdog import Watchdog
from more.losses.objective import Batch
from more.model.network import NetworkOutput


class Trainer:
    """One run: network, objective, DeepSpeed engine, data and records.

    Args:
        config: settings.
        train_set: shard set with images and tags.
        val_set: shard set with images and masks, or None.
        run: run folder.
        world: this rank among its peers.
        resume: `auto`, `never` or a checkpoint folder.
        left_out: images of the training set that are damaged and left out.

    Raises:
        UserError: settings, data or checkpoint do not fit together.
    """

    def __init__(self, config: Config, train_set: ShardSet, val_set: ShardSet | None, run: Path,
                 world: World, resume: str = "auto", left_out: Sequence[Damaged] = ()):
        check_classes(config, train_set, val_set)
        self.config, self.run, self.world = config, run, world
        self.train_set, self.val_set = train_set, val_set
        self.split = split_batch(config.train.global_batch, world.size, config.train.micro_batch)
        source, rejected = world.agree(folders.resolve(run, resume) if world.main else None)
        if source is not None:
            check_same_model(config, source)
            checkpoint.check_precision(source, config.precision, config.deepspeed.zero_stage)
        self.records = Records(run, world.main, config.train.iterations)
        for reason in rejected:
            self.records.say(f"not resumed: {reason}")
        self.objective = make_objective(config)
        self.engine = make_engine(config, self.split, world, train_set, self.records.say,
                                  checkpoint.training_weights(source) if source else None)
        self.average = (WeightAverage(self.engine, config.train.ema) if config.train.ema else None)
        self.cams = CamMaker(config, self.engine, self.objective,
                             self.engine.module.encoder.patch_size, self.average)
        self.writer = checkpoint.Writer(run / "checkpoints", config.checkpoint.keep, world,
                                        config.checkpoint.background)
        self.guard = Guard(run, config.train.skip_nonfinite, config.precision == "fp16")
        self.start, self.saved = 0, -1
        if source is not None:
            self.start = checkpoint.restore(self.engine, source, world, self.average)
            self.saved = self.start
            self.records.say(f"resumed after {self.start} updates from {source}")
        if world.main:
            describe_run(self, left_out)

    def fit(self) -> str:
        """Train to the last iteration, or until a stop is asked for: "finished" or "stopped"."""
        state = "failed"
        watchdog = Watchdog(self.run, self.world.rank, self.config.deepspeed.timeout_minutes * 60)
        self._status("running", self.start)
        try:
            with StopRequest(self.run, self.world) as stop:
                state = self._loop(stop, watchdog)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, self.split) from error
        finally:
            watchdog.close()
            if state == "failed":
                self._status(state, max(self.start, self.saved))
            self.records.close()
            self.engine.destroy()
        return state

    def _loop(self, stop: StopRequest, watchdog: Watchdog) -> str:
        train, meter, batches = self.config.train, Meter(), self._batches()
        for step in range(self.start, train.iterations):
            watchdog.rearm()
            stopping = self._step(step, batches, meter, stop)
            watchdog.disarm()
            done = step + 1
            if done % train.log_every == 0 or done == train.iterations:
                self._record(done, meter)
            # Saved first: whatever goes wrong in an evaluation, the updates are not lost.
            if stopping or self._due(done, self.config.checkpoint.every):
                self._save(done)
            if stopping and done < train.iterations:
                self.writer.finish()
                self._status("stopped", done)
                self.records.say(f"stopped on request after {done} updates; the same command goes "
                                 "on from here")
                return "stopped"
            if self._due(done, self.config.eval.every) and self.val_set is not None:
                self._evaluate(done)
                meter.restart()
        self.writer.finish()
        self._status("finished", train.iterations)
        return "finished"

    def _step(self, step: int, batches: Iterator[dict[str, Any]], meter: Meter,
              stop: StopRequest) -> bool:
        """One update of all ranks; whether they agree to stop after it."""
        waited, terms, rows = 0.0, [], []
        for _ in range(self.split.accumulation):
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            rows += batch["indices"].tolist()
            terms.append(self._pass(batch, step))
        own = {name: torch.stack([part[name] for part in terms]).mean() for name in terms[0]}
        request = torch.tensor(float(stop.asked()), device=self.world.device)
        means = self.world.mean(torch.stack([*own.values(), request])).tolist()
        if self.engine.was_step_applied():
            if self.average is not None:
                self.average.update()
        else:
            path = self.guard.left_out(step, [self.train_set.ids[row] for row in rows],
                                       {name: float(value) for name, value in own.items()},
                                       self.world)
            if path is not None:
                self.records.say(f"iteration {step} is left out: not finite, see {path}")
        meter.add(dict(zip(own, means, strict=False)), self.split.global_batch, waited)
        self.records.progress(step + 1, meter)
        return means[-1] > 0

    def _pass(self, data: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
        """Forward, loss and backward of one micro-batch; DeepSpeed updates when it is due."""
        images = prepare(data, self.world.device, self.config.data.mean, self.config.data.std)
        output = in_float32(self.engine(self._as_weights(images)))
        tags = data["tags"].to(self.world.device)
        cams, aux_cams = self.cams(self._as_weights(images), tags, output, step)
        batch = Batch(images=images, tags=tags, cams=cams,
                      aux_cams=aux_cams, box=data.get("box"),
                      keys=self._keys(data["slots"], output.patch_tokens.shape, step),
                      count_reduce=self.world.mean if self.world.size > 1 else None,
                      share=1 / self.world.size,
                      mean=self.config.data.mean, std=self.config.data.std)
        terms = self.objective(output, batch, step)
        self.engine.backward(poisoned(terms["total"], output.logits))
        self.engine.step()
        return {name: value.detach().float().reshape(()) for name, value in terms.items()}

    def _as_weights(self, images: torch.Tensor) -> torch.Tensor:
        """Images in the weights' precision (half under fp16)."""
        return images.half() if self.engine.fp16_enabled() else images

    def _keys(self, slots: torch.Tensor, shape: torch.Size, step: int) -> torch.Tensor:
        """Uniform numbers for URE's choice: a function of seed, step and place in the batch."""
        generator = torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + step)
        keys = torch.rand(self.split.global_batch, 2, shape[-2] * shape[-1], generator=generator)
        return keys[slots].to(self.world.device)

    def _batches(self) -> Iterator[dict[str, Any]]:
        data = self.config.data
        return iter(make_train_loader(
            self.train_set, make_transform(data), make_plan(self.config, self.train_set),
            rank=self.world.rank, world=self.world.size, micro_batch=self.split.micro,
            start_step=self.start, stop_step=self.config.train.iterations,
            reading=Reading(data.workers, data.prefetch_mb, copy=False)))

    def _evaluate(self, done: int) -> None:
        if self.average is None:
            scores = validate(self.engine.module, self.val_set, self.config, self.world)
        else:
            with self.average.in_place():
                scores = validate(self.engine.module, self.val_set, self.config, self.world)
        self.engine.train()
        self.records.write(done, {"eval": scores})
        self.records.say(f"[{done}] validation mIoU: " + ", ".join(
            f"{name} {value:.1f}" for name, value in scores.items()))
        metric = self.config.checkpoint.best
        if metric:
            best = self.world.agree(folders.read_best(self.writer.folder))
            if best is None or scores[metric] > best["score"]:
                self._save(done)
                self.writer.finish()
                if self.world.main:
                    folders.write_best(self.writer.folder, metric, scores[metric], done)
                    folders.prune(self.writer.folder, self.config.checkpoint.keep)

    def _save(self, done: int) -> None:
        if self.saved == done:
            return
        self.writer.save(checkpoint.take(self.engine, done, self.world, self.average,
                                         {"config": to_dict(self.config)}))
        self.saved = done
        if not self.config.checkpoint.background:  # else it is not on the disk yet
            self._status("running", done)

    def _status(self, state: str, step: int) -> None:
        if self.world.main:
            write_status(self.run, state, step, self.config.train.iterations)

    def _due(self, done: int, every: int) -> bool:
        return done == self.config.train.iterations or (every > 0 and done % every == 0)

    def _record(self, done: int, meter: Meter) -> None:
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


def in_float32(output: NetworkOutput) -> NetworkOutput:
    """The same outputs in fp32: losses and similarities are computed outside autocast."""
    return NetworkOutput(*(value.float() for value in output))

"""The training loop: next batch → forward → CAMs → objective → backward → update → record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import more
from more.config.load import to_dict
from more.config.schema import Config
from more.data.colours import prepare
from more.data.loader import Reading, make_train_loader
from more.data.shards.format import to_json, write_atomic
from more.data.shards.quarantine import Damaged
from more.data.shards.reader import ShardSet
from more.engine import checkpoint
from more.engine.build import (
    deepspeed_dict,
    make_network,
    make_objective,
    make_optimizer,
    make_plan,
    make_transform,
    split_batch,
)
from more.engine.distributed import World, import_deepspeed
from more.engine.schedule import make_scheduler
from more.engine.telemetry import Meter, Records, duration
from more.engine.validate import validate
from more.engine.warmup import warm_heads
from more.errors import UserError
from more.localization.maps import multi_scale
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
        source = world.agree(checkpoint.resolve(run, resume) if world.main else None)
        if source is not None:
            check_same_model(config, source)
        self.records = Records(run, world.main)
        self.objective = make_objective(config)
        self.engine = self._make_engine(load_weights=source is None)
        self.start = 0
        if source is not None:
            self.start = checkpoint.load(self.engine, source, world)
            self.records.say(f"resumed after {self.start} updates from {source}")
        if world.main:
            self._describe(left_out)

    def fit(self) -> dict[str, Any]:
        """Train to the last iteration; returns the last evaluation's scores."""
        config, meter, scores = self.config, Meter(), {}
        batches = self._batches()
        for step in range(self.start, config.train.iterations):
            waited, terms = 0.0, []
            for _ in range(self.split.accumulation):
                before = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - before
                terms.append(self._pass(batch, step))
            meter.add(self._mean_terms(terms, step), self.split.global_batch, waited)
            done = step + 1
            if done % config.train.log_every == 0 or done == config.train.iterations:
                self._record(done, meter.read())
            # Saved first: whatever goes wrong in an evaluation, the updates are not lost.
            if self._due(done, config.checkpoint.every):
                checkpoint.save(self.engine, self.run / "checkpoints", done, self.world,
                                config.checkpoint.keep, {"config": to_dict(config)})
            if self._due(done, config.eval.every) and self.val_set is not None:
                scores = self._evaluate(done)
                meter.read()
        self.records.close()
        return scores

    def _pass(self, data: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
        """Forward, loss and backward of one micro-batch; DeepSpeed updates when it is due."""
        images = prepare(data, self.world.device, self.config.data.mean, self.config.data.std)
        output = in_float32(self.engine(images))
        tags = data["tags"].to(self.world.device)
        cams, aux_cams = self._cams(images, tags, output, step)
        batch = Batch(images=images, tags=tags, cams=cams,
                      aux_cams=aux_cams, box=data.get("box"),
                      keys=self._keys(data["slots"], output.patch_tokens.shape, step),
                      count_reduce=self.world.mean if self.world.size > 1 else None,
                      share=1 / self.world.size,
                      mean=self.config.data.mean, std=self.config.data.std)
        terms = self.objective(output, batch, step)
        self.engine.backward(terms["total"])
        self.engine.step()
        return {name: value.detach().float().reshape(()) for name, value in terms.items()}

    def _cams(self, images: torch.Tensor, tags: torch.Tensor, output: NetworkOutput,
              step: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Multi-scale CAM and auxiliary CAM from the current weights, without gradient."""
        if not self.objective.needs_cams(step):
            return None, None
        with torch.no_grad():
            return multi_scale(partial(self.engine, mode="cam"), images, self.config.cam.scales,
                               relu=(True, True), first=(output.cam, output.aux_cam),
                               tags=tags)

    def _keys(self, slots: torch.Tensor, shape: torch.Size, step: int) -> torch.Tensor:
        """Uniform numbers for URE's choice: a function of seed, step and place in the batch."""
        generator = torch.Generator().manual_seed(self.config.train.seed * 1_000_003 + step)
        keys = torch.rand(self.split.global_batch, 2, shape[-2] * shape[-1], generator=generator)
        return keys[slots].to(self.world.device)

    def _mean_terms(self, terms: list[dict[str, torch.Tensor]], step: int) -> dict[str, float]:
        """Means over passes and ranks as numbers; stops every rank on a value that is not finite.

        Raises:
            UserError: the total of some rank is NaN or infinite.
        """
        names = list(terms[0])
        stacked = torch.stack([torch.stack([t[name] for name in names]) for t in terms]).mean(0)
        values = dict(zip(names, self.world.mean(stacked).tolist(), strict=True))
        if not all(map(torch.isfinite, torch.tensor([values["total"]]))):
            raise UserError(f"the loss is not finite at iteration {step}: {values}",
                            "lower optim.lr, or look at the images of this step")
        return values

    def _make_engine(self, load_weights: bool) -> Any:
        config = self.config
        network = make_network(config, load_weights).to(self.world.device)
        if load_weights and config.head_warmup.updates:
            terms = warm_heads(network, self.train_set, config, quiet=not self.world.main)
            self.records.say("head warm-up ends at " + ", ".join(
                f"{name} {value:.4g}" for name, value in terms.items()))
        optimizer = make_optimizer(config, network)
        schedule = config.optim
        scheduler = make_scheduler(optimizer, schedule.warmup, config.train.iterations,
                                   schedule.warmup_ratio, schedule.power, schedule.frozen_steps)
        engine, *_ = import_deepspeed().initialize(
            model=network, optimizer=optimizer, lr_scheduler=scheduler,
            config=deepspeed_dict(config, self.split))
        engine.train()
        return engine

    def _batches(self) -> Iterator[dict[str, Any]]:
        data = self.config.data
        return iter(make_train_loader(
            self.train_set, make_transform(data), make_plan(self.config, self.train_set),
            rank=self.world.rank, world=self.world.size, micro_batch=self.split.micro,
            start_step=self.start, stop_step=self.config.train.iterations,
            reading=Reading(data.workers, data.prefetch_mb, copy=False)))

    def _evaluate(self, done: int) -> dict[str, Any]:
        scores = validate(self.engine.module, self.val_set, self.config, self.world)
        self.engine.train()
        self.records.write(done, {"eval": scores})
        self.records.say(f"[{done}] validation mIoU: " + ", ".join(
            f"{name} {value:.1f}" for name, value in scores.items()))
        return scores

    def _due(self, done: int, every: int) -> bool:
        return done == self.config.train.iterations or (every > 0 and done % every == 0)

    def _record(self, done: int, record: dict[str, Any]) -> None:
        groups = self.engine.optimizer.param_groups
        record["lr"] = {group["name"]: group["lr"] for group in groups}
        norm = self.engine.get_global_grad_norm()
        if norm is not None:
            record["grad_norm"] = float(norm)
        self.records.write(done, record)
        left = (self.config.train.iterations - done) * record["seconds_per_step"]
        terms = " ".join(f"{name} {value:.4g}" for name, value in record["terms"].items())
        self.records.say(f"[{done}/{self.config.train.iterations}] {terms} | "
                         f"{record['images_per_s']:.2f} img/s, eta {duration(left)}")

    def _describe(self, left_out: Sequence[Damaged]) -> None:
        """Write the run's settings and say what is about to happen."""
        write_atomic(self.run / "config.json", to_json(to_dict(self.config)))
        about = {"version": more.__version__, "classes": self.train_set.class_names,
                 "train": str(Path(self.train_set.path).resolve()),
                 "val": str(Path(self.val_set.path).resolve()) if self.val_set else None,
                 "ranks": self.world.size, "torch": torch.__version__}
        write_atomic(self.run / "run.json", to_json(about))
        if left_out:
            write_atomic(self.run / "quarantine.json", to_json([asdict(item) for item in left_out]))
            self.records.say(f"{len(left_out)} damaged images are left out (data.quarantine), "
                             f"{self.run / 'quarantine.json'} names them")
        parameters = sum(p.numel() for p in self.engine.module.parameters()) / 1e6
        self.records.say(
            f"{self.config.name}: {parameters:.1f} M parameters, {len(self.train_set)} images, "
            f"{self.world.size} rank(s) on {self.world.device.type}, global batch "
            f"{self.split.global_batch} = {self.world.size} × {self.split.micro} × "
            f"{self.split.accumulation}, {self.config.precision}, ZeRO "
            f"{self.config.deepspeed.zero_stage}, {self.config.train.iterations} iterations")


def in_float32(output: NetworkOutput) -> NetworkOutput:
    """The same outputs in fp32: losses and similarities are computed outside autocast."""
    return replace(output, **{item.name: getattr(output, item.name).float()
                              for item in fields(output)})


def check_classes(config: Config, train_set: ShardSet, val_set: ShardSet | None) -> None:
    """Settings and shard sets must speak of the same classes.

    Raises:
        UserError: another number of classes, or a validation set with other names.
    """
    if train_set.num_classes != config.model.num_classes:
        raise UserError(
            f"{train_set.path} has {train_set.num_classes} classes, the configuration "
            f"{config.model.num_classes}",
            f"--set model.num_classes={train_set.num_classes}, or convert the right data set")
    if config.train.global_batch > len(train_set):
        raise UserError(f"{train_set.path} has {len(train_set)} images, fewer than "
                        f"train.global_batch = {config.train.global_batch}",
                        f"--set train.global_batch={len(train_set)} or less")
    if val_set is not None and val_set.class_names != train_set.class_names:
        raise UserError(f"{val_set.path}: its classes differ from those of {train_set.path}",
                        "convert both splits with the same class list")
    if val_set is not None and not val_set.has("mask"):
        raise UserError(f"{val_set.path}: the validation set has no masks",
                        "convert a split with masks, or leave --val out")


def check_same_model(config: Config, source: Path) -> None:
    """A checkpoint continues only under the model, classes and crop it was made with.

    Raises:
        UserError: lists every setting that differs.
    """
    old = checkpoint.info(source)["config"]
    new = to_dict(config)
    pairs = [("data", "crop"), *(("model", key) for key in new["model"] if key != "weights")]
    changed = [f"{section}.{key}: {old[section].get(key)!r} → {new[section][key]!r}"
               for section, key in pairs if old[section].get(key) != new[section][key]]
    if changed:
        raise UserError(f"{source}: the configuration has changed since ({'; '.join(changed)})",
                        "restore these settings, or train into another --run folder")

"""What a dry run has found, as tables on the terminal or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from more.data.class_counts import few_note
from more.progress import PlainTable
from more.train.checks import LEARNS_FROM


def show(facts: dict[str, Any], as_json: bool = False) -> None:
    """Print what `describe` found, as tables or as JSON.

    Args:
        facts: from `more.plan.dry_run.describe`.
        as_json: print them as JSON.
    """
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    out, batch, loader = Console(), facts["batch"], facts["loader"]
    few = few_note(facts["images_per_class"])
    order, saved, scored = facts["order"], facts["checkpoints"], facts["evaluation"]
    lines = {
        "run": f"{facts['name']} ({facts['variant']}, stage {facts['stage']}: training on "
               f"{LEARNS_FROM[facts['stage']]}), starts from {facts['start']}",
        "device": f"{facts['device']}; {facts['precision']}, ZeRO {facts['zero_stage']}, "
                  f"offload {facts['offload']}",
        "network": f"{facts['parameters'] / 1e6:.2f} M parameters"
                   + (f" ({facts['trained'] / 1e6:.2f} M trained)"
                      if facts["trained"] < facts["parameters"] else "")
                   + f", {facts['classes']} classes, "
                   f"weights {facts['weights']} (not read)",
        "batch": f"{batch['global']} images an update = {batch['ranks']} ranks × {batch['micro']} "
                 f"× {batch['accumulation']} passes",
        "length": f"{facts['iterations']} updates = {facts['epochs']:.2f} epochs of "
                  f"{facts['steps_per_epoch']:g} updates; {facts['images_seen']} images seen of "
                  f"{facts['images']}",
        "images per class": ", ".join(f"{name} {count}" for name, count
                                      in facts["images_per_class"].items()),
        **({"few images": few} if few else {}),
        **({"scaled": _scaled_line(facts["scaled"])} if facts["scaled"] else {}),
        "order": f"{order['kind']} ({order['shards']}), window {order['window']}, last batch "
                 f"{order['last_batch']}, seed {order['seed']}",
        "loader": (f"{loader['workers']} processes a rank, {loader['ahead']} batches ahead in "
                   f"{readable_bytes(loader['shared_bytes'])} of shared memory" if loader["workers"]
                   else "in the training process")
                  + f"; crops of {loader['crop']} px, {loader['augment']}, {loader['pipeline']}",
        "checkpoints": f"after {_steps(saved['steps'])}; {readable_bytes(saved['bytes'])} each, "
                       f"{saved['kept']} kept, {readable_bytes(saved['disk_bytes'])} at most"
                       + (", in the background" if saved["background"] else ""),
        "evaluation": f"after {_steps(scored['steps'])}, {scored['images']} images"
                      if scored["steps"] else "none (no --val)",
    }
    table = PlainTable(show_header=False, title="dry run: nothing is written")
    for key, text in lines.items():
        table.add_row(key, text)
    out.print(table)
    out.print(_memory_table(facts))
    if facts["activations"]:
        out.print(_activation_table(facts))
    out.print("A rank's device needs the sum of both tables' last columns; ZeRO 3 also gathers "
              "layers while it needs them.", highlight=False)


def _scaled_line(scaled: dict[str, Any]) -> str:
    """What `train.scale_to` has made of the settings."""
    changed = ", ".join(f"{key} {value:.6g}" for key, value in scaled["settings"].items())
    return (f"from {scaled['from']} to {scaled['to']} images an update (× {scaled['factor']:g}): "
            f"{changed}; " + ", ".join(scaled["kept"]) + " stay as written")


def _memory_table(facts: dict[str, Any]) -> PlainTable:
    """Memory of one rank by ZeRO stage; the chosen one is marked."""
    titles = {"weights": "weights", "master": "fp32 copy", "gradients": "gradients",
              "moments": "moments", "average": "average", "buffers": "buffers",
              "host": "on the CPU", "device": "on the device"}
    columns = [name for name in titles if any(row[name] for row in facts["memory"])]
    table = PlainTable("ZeRO", *(titles[name] for name in columns), title="memory of a rank")
    for row in facts["memory"]:
        chosen = row["stage"] == facts["zero_stage"]
        table.add_row(f"{row['stage']}{' ←' if chosen else ''}",
                      *(readable_bytes(row[name]) if row[name] else "-" for name in columns),
                      style="bold" if chosen else "")
    return table


def _activation_table(facts: dict[str, Any]) -> PlainTable:
    """Activations of a pass, without and with recomputed blocks."""
    titles = {"kept": "kept for backward", "forward": "forward", "cam": "CAM views",
              "losses": "labels, losses", "backward": "backward", "peak": "at most"}
    table = PlainTable("blocks", *titles.values(), title=f"activations of a pass of "
                  f"{facts['batch']['micro']} images")
    names = {"plain": "kept", "checkpointing": "recomputed"}
    for key, name in names.items():
        chosen = facts["checkpointing"] == (key == "checkpointing")
        table.add_row(f"{name}{' ←' if chosen else ''}",
                      *(readable_bytes(facts["activations"][key][part]) for part in titles),
                      style="bold" if chosen else "")
    return table


def _steps(steps: Sequence[int]) -> str:
    """The updates of a list, the middle ones left out where they are many."""
    shown = [str(step) for step in steps]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:2], "…", shown[-1]]) + " updates"


def readable_bytes(size: int) -> str:
    """`1.23 GB` for a number of bytes.

    Args:
        size: bytes.

    Returns:
        Three digits and the unit: kB, MB or GB.
    """
    unit = next((power for power in (3, 2) if size >= 1000 ** power), 1)
    return f"{size / 1000 ** unit:.3g} {('kB', 'MB', 'GB')[unit - 1]}"

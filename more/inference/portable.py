"""The network as a file that runs without this package: ONNX, or a program of torch.export.

The file is the decoder's route in one forward: normalised pixels in, logits of the labels out. The
scales, the mirrored view and the dense CRF of `more predict` are not in it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import more
from more.config.schema import Config
from more.data.shards.format import make_folder, to_json, write_atomic
from more.errors import UserError
from more.inference.trained import class_names, load_run

ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "pt2": ".pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`
TOLERANCE = 1e-4  # of a logit; of the largest one where that is above 1
LARGEST = 2_000_000_000  # bytes of an ONNX file, which is one protobuf message
_BATCHES = (1, 3)  # tried after writing


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the network.
        facts: JSON beside it: how pixels are prepared and logits read.
        difference: largest one between its logits and the network's own, on random pixels.
        largest: of these logits, without sign.
    """

    path: Path
    facts: Path
    difference: float
    largest: float


class Segmenter(nn.Module):
    """The decoder's route of a network alone, in float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B,3,S,S] to logits [B,C+1,s,s], background first."""
        return self.network(pixels, mode="segment").float()


def choose_format(out: Path, format: str | None) -> str:
    """The format of a file of weights, by its ending unless it is said.

    Args:
        out: file to write.
        format: a key of `ENDINGS`; None: by the ending.

    Returns:
        A key of `ENDINGS`.

    Raises:
        UserError: no such format, or another ending.
    """
    if format is not None and format not in ENDINGS:
        raise UserError(f"--format {format}: unknown", f"choose one of {', '.join(ENDINGS)}")
    found = format or next((key for key, end in ENDINGS.items() if out.suffix == end), None)
    if found is None or out.suffix != ENDINGS[found]:
        wanted = [ENDINGS[found]] if found else list(ENDINGS.values())
        raise UserError(f"{out}: not a {' or '.join(wanted)} file",
                        f"let the name end with {' or '.join(wanted)}")
    return found


def export_network(run: Path, out: Path, format: str, which: str = "latest") -> Exported:
    """Write the decoder's route of a run; the file is compared with the network before it counts.

    Args:
        run: run folder, or a file of `more export-weights`.
        out: file to write.
        format: "onnx" or "pt2".
        which: the checkpoint, as in `load_run`.

    Returns:
        The files and the largest difference.

    Raises:
        UserError: as `load_run`; the decoder was not trained; a package is missing; the weights
            are too large for ONNX; the file computes something else.
    """
    if format == "onnx":
        need_packages()
    config, network, path = load_run(run, which)
    if not config.decoder_trained:
        raise UserError(f"{run}: its decoder was not trained (loss.weights.seg = 0), and the "
                        "decoder is what is exported",
                        "give the run of stage two (more train --masks … --init RUN)")
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if format == "onnx" and weights > LARGEST:
        raise UserError(f"{run}: weights of {weights / 1e9:.1f} GB, an ONNX file holds 2",
                        "choose --format pt2")
    segmenter, size = Segmenter(network).eval(), config.inference.size
    program = trace(segmenter, size)
    facts = describe(config, class_names(run), path.name, program)
    data = _as_onnx(program, facts) if format == "onnx" else _as_pt2(program, facts)
    difference, largest = _compare(segmenter, size, data, format, out)
    make_folder(out.parent)
    write_atomic(out, data)
    beside = out.with_name(f"{out.name}.json")
    write_atomic(beside, to_json(facts))
    return Exported(out, beside, difference, largest)


def need_packages() -> None:
    """Refuse where a package of the extra `onnx` is missing.

    Raises:
        UserError: names it.
    """
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"--format onnx needs the package {name}: {error}",
                            'pip install ".[onnx]", or choose --format pt2') from error


def trace(segmenter: nn.Module, size: int) -> torch.export.ExportedProgram:
    """The network as a graph of operations, for any number of pictures.

    Args:
        segmenter: in eval mode, on the CPU.
        size: side of its input in pixels.

    Returns:
        The program: `pixels` to logits.
    """
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():  # a batch of 2: 0 and 1 would become constants of the graph
        return torch.export.export(segmenter, (torch.zeros(2, 3, size, size),),
                                   dynamic_shapes={"pixels": {0: batch}})


def describe(config: Config, names: list[str], checkpoint: str,
             program: torch.export.ExportedProgram) -> dict[str, Any]:
    """What a user of the file has to know: how to prepare pixels, how to read logits.

    Args:
        config: the run's settings.
        names: of the classes; numbers take their place where they do not fit.
        checkpoint: name of the weights.
        program: see `trace`.

    Returns:
        The facts, for JSON.
    """
    count, size = config.model.num_classes, config.inference.size
    names = names if len(names) == count else [f"class_{k + 1}" for k in range(count)]
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    cells = int(output.args[0][0].meta["val"].shape[-1])
    return {
        "format": "more-segmenter-1", "version": more.__version__, "checkpoint": checkpoint,
        "input": f"pixels: float32 [batch, 3, {size}, {size}]",
        "output": f"logits: float32 [batch, {count + 1}, {cells}, {cells}]",
        "size": size, "mean": list(config.data.mean), "std": list(config.data.std),
        "channels": "RGB", "labels": ["background", *names], "background": 0,
        "before": "resize the picture to size x size (bilinear; the aspect ratio is lost), RGB "
                  "values 0..255, subtract mean and divide by std of each channel, channels first",
        "after": "resize the logits to the picture (bilinear); the largest one of a pixel says its "
                 "label, a place in labels"}


def _as_onnx(program: torch.export.ExportedProgram, facts: dict[str, Any]) -> bytes:
    import onnx

    made = torch.onnx.export(program, dynamo=True, input_names=["pixels"],
                             output_names=["logits"], verbose=False)
    model = made.model_proto
    onnx.helper.set_model_props(model, _texts(facts))
    return model.SerializeToString()


def _as_pt2(program: torch.export.ExportedProgram, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"more.json": to_json(facts).decode("utf-8")})
    return buffer.getvalue()


def _texts(facts: dict[str, Any]) -> dict[str, str]:
    """Metadata of ONNX hold texts only; what is no text becomes JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in facts.items()}


def _compare(segmenter: nn.Module, size: int, data: bytes, format: str, out: Path
             ) -> tuple[float, float]:
    """The largest difference between a file's logits and the network's, and their largest one."""
    run = _onnx_runner(data) if format == "onnx" else _pt2_runner(data)
    pixels = torch.randn(max(_BATCHES), 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = segmenter(pixels).numpy()
    difference = max(float(np.abs(run(pixels[:count]) - wanted[:count]).max())
                     for count in _BATCHES)
    largest = float(np.abs(wanted).max())
    allowed = TOLERANCE * max(1.0, largest)  # float32 has seven digits, whatever the size
    if not difference <= allowed:  # not a number is a difference, too
        raise UserError(f"{out}: not written, its logits differ by {difference:.1e} from the "
                        f"network's (allowed: {allowed:.1e})",
                        "choose another --format, or other versions of torch and the packages "
                        'of ".[onnx]"')
    return difference, largest


def _onnx_runner(data: bytes) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits"], {"pixels": pixels.numpy()})[0]


def _pt2_runner(data: bytes) -> Any:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda pixels: module(pixels).detach().numpy()

"""The straightforward training step, for a comparison with this project's.

Both share weights, batch, random choices and optimiser.
"""

from __future__ import annotations

from torch import Tensor

from more.bench.drawn_step import Example, Mark, OtherStep, OwnStep
from more.config.schema import PAPER, Config
from more.errors import UserError
from more.method.network import MoReNetwork
from tests.oracles.step import training_terms

# Not the released code's own time: it filters with compiled C++, the oracle with a dictionary.
NAMES = {"research": "straightforward step", "positions": "straightforward step, by position"}


def plain_step(oracle: str) -> OtherStep | None:
    """The step to compare with.

    Args:
        oracle: "research" (loops over images, classes and views), "positions" (also over pairs
            and pixels) or "none".

    Returns:
        None for "none".
    """
    def make(config: Config, network: MoReNetwork, example: Example) -> ResearchStep:
        check_options(config)
        return ResearchStep(config, network, example, oracle == "positions")

    return None if oracle == "none" else OtherStep(NAMES[oracle], make)


class ResearchStep(OwnStep):
    """The same update by `tests/oracles/step.py`; with PyTorch's own loop over parameters.

    Args:
        by_position: losses of pairs and pixels one after another.
    """

    def __init__(self, config: Config, network: MoReNetwork, example: Example, by_position: bool):
        super().__init__(config, network, example)
        self.by_position = by_position
        for group in self.optimizer.param_groups:
            group["fused"], group["foreach"] = None, None

    def terms(self, mark: Mark = lambda name: None) -> dict[str, Tensor]:
        """All terms and their sum."""
        data = self.example
        return training_terms(
            self.network, data.images, data.tags, self.objective, self.config.cam.scales,
            data.keys, mark, self.by_position)


def check_options(config: Config) -> None:
    """Refuse settings that the formulas of `tests/oracles/step.py` do not have.

    Raises:
        UserError: with the first such setting.
    """
    paper = [key for key, value in PAPER.items()
             if getattr(getattr(config, key.split(".")[0]), key.split(".")[1]) == value]
    others = {"model.pooling": config.model.pooling == "max", "model.graph": config.model.graph,
              "model.token_attention": config.model.token_attention == "full",
              "loss.mcl_form": config.loss.mcl_form == "plain",
              "loss.energy_filter": config.loss.energy_filter == "lattice",
              "cam.late_after": config.cam.late_after >= 0,
              "precision": config.precision == "fp32",
              "cam.precision": config.cam.precision != "bf16",
              "cam.whole_patches": not config.cam.whole_patches}
    wrong = paper + [key for key, good in others.items() if not good]
    if wrong:
        raise UserError(f"the step of research code has released options only, not {wrong[0]}",
                        "measure a released recipe, or leave --oracle out")

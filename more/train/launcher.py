"""The launcher's environment variables: how the ranks of a training find each other."""

from __future__ import annotations

import os
import socket

from more.device import SLURM_TASKS
from more.errors import UserError


def fill_environment() -> None:
    """Set the five variables that `torch.distributed` reads: from SLURM, else for one rank alone.

    Raises:
        UserError: several ranks without an address to meet at.
    """
    if "RANK" not in os.environ and int(os.environ.get(SLURM_TASKS, "1")) > 1:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ[SLURM_TASKS]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
        os.environ.setdefault("LOCAL_WORLD_SIZE",
                              os.environ.get("SLURM_NTASKS_PER_NODE", "1").split("(")[0])
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{os.environ['WORLD_SIZE']} ranks, but {' and '.join(missing)} not set: "
                        "they would not find each other",
                        "export the first machine's name and a free port, or start with "
                        "launch/slurm/train.sbatch")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for key, value in alone.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if int(os.environ["WORLD_SIZE"]) > 1:
        _choose_interface()


def not_met(text: str, minutes: float) -> UserError:
    """Why the ranks have not found each other, and what to do about it.

    Args:
        text: of PyTorch's error.
        minutes: that this rank has waited.

    Returns:
        The error to raise.
    """
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if "EADDRINUSE" in text or "address already in use" in text:
        return UserError(f"port {port} of {host} is in use (MASTER_PORT)",
                         "choose another one (PORT of the launch scripts, --master_port of "
                         "torchrun), or end what uses it")
    if rank == "0":
        return UserError(f"not all of {size} ranks came to {host}:{port} within {minutes:g} "
                         f"minutes ({text.splitlines()[0]})",
                         "start the others, with this MASTER_ADDR and MASTER_PORT; see that the "
                         "network lets them through")
    return UserError(f"{host}:{port} (MASTER_ADDR, MASTER_PORT) does not answer rank {rank} "
                     f"of {size} within {minutes:g} minutes ({text.splitlines()[0]})",
                     "start rank 0 there, correct the address, or open the port between the "
                     "machines")


def _free_port() -> int:
    """A TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _choose_interface() -> None:
    """Name the network interface that reaches the master, where the user has not.

    A host name that resolves to loopback makes gloo and nccl listen where no peer can reach them.
    """
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ["MASTER_ADDR"], 9))
            address = probe.getsockname()[0]
        except OSError:
            return
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)

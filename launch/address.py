"""This machine's address towards another one, for torchrun: `python launch/address.py HOST`.

Prints the address and whether HOST is this machine: 1, 0, or nothing for a loopback HOST, where
torchrun has to find out itself which of its agents came first.
"""

from __future__ import annotations

import socket
import sys

# An address for documentation (RFC 5737): nothing is sent, the kernel only picks the way out.
ANYWHERE = "192.0.2.1"


def address_towards(host: str) -> str:
    """The address from which this machine would reach `host`; OSError without a way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]


def locate(host: str) -> tuple[str, str]:
    """(own address, "1" | "0" | "") for the machine that all agents meet at.

    Raises:
        OSError: `host` is unknown, cannot be reached, or is a name of this machine that resolves
            to loopback on a machine without a default route.
    """
    target = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
    if not target.startswith("127."):
        own = address_towards(target)
        return own, "1" if own == target else "0"
    if host == "localhost" or host.startswith("127."):
        return target, ""
    # A machine whose own name resolves to loopback: its peers need an address that they can reach.
    return address_towards(ANYWHERE), "1"


def main() -> int:
    """Print this machine's address towards the host named on the command line; the exit code."""
    host = sys.argv[1]
    try:
        print(*locate(host))
    except OSError as error:
        print(f"error: {host}: no way to it from this machine ({error})\n"
              "  fix: give the first machine's IPv4 address instead of its name, and check the "
              "network", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

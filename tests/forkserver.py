"""A process that has imported what a training needs and forks for every request.

    python -m tests.forkserver SOCKET          (a file descriptor; `tests.processes` starts it)

Importing torch, DeepSpeed and their company costs seconds, the tiny runs of the tests much less.
A child is a process as `python -m MODULE` makes it: its own number, signals, exit code, directory,
environment and output. Different is only what is fixed when a library loads: OMP_*, DS_ACCELERATOR
and CUDA_VISIBLE_DEVICES are those of this process, and so is the seed of `hash`.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading

# The command line, what it imports when it trains, and what those import at their first use.
PRELOADED = ("more.cli", "more.train.trainer", "more.train.validation", "more.plan.dry_run",
             "more.data.shards.quarantine", "more.inference.localize", "timm", "mmengine",
             "mmengine.device", "mmengine.dist", "more.filtering.permutohedral", "torchmetrics",
             "tensorboard", "torch.utils.tensorboard", "torch._dynamo",
             "torch._inductor.compile_fx")


def preload() -> None:
    """Import everything; fork needs a process that is still of one thread.

    Raises:
        RuntimeError: a library has started a thread.
    """
    from more.train.distributed import import_deepspeed

    import_deepspeed()
    for name in PRELOADED:
        importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        raise RuntimeError(f"{len(threads)} threads after the imports, a fork would lose them")


def serve(control: socket.socket) -> tuple[dict, list[int]] | None:
    """Fork for every request until the other side closes.

    Returns:
        In a child its request and the descriptors of its output; None in the server at its end.
    """
    waiting: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _report(waiting)
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 2**20, 3)
            if not message:
                return None
            *outputs, answer = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(answer)
                for held in (control, woken, wake, *waiting.values()):
                    held.close()
                return json.loads(message), outputs
            for descriptor in outputs:
                os.close(descriptor)
            waiting[pid] = socket.socket(fileno=answer)
            _send(waiting[pid], pid)


def _report(waiting: dict[int, socket.socket]) -> None:
    """Tell the exit codes of the children that have ended."""
    while waiting:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        answer = waiting.pop(pid)
        _send(answer, os.waitstatus_to_exitcode(status))
        answer.close()


def _send(answer: socket.socket, number: int) -> None:
    try:
        answer.send(str(number).encode())
    except OSError:  # whoever asked no longer listens
        pass


def become(request: dict, outputs: list[int]) -> None:
    """Take on directory, environment, arguments and output of the request, then run its module."""
    if request["session"]:
        os.setsid()
    # Whoever started the tests may ignore it (a shell's &), and so would a training.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, descriptor in zip((1, 2), outputs, strict=True):
        os.dup2(descriptor, target)
    for descriptor in outputs:
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["cwd"]
    sys.argv = [request["module"], *request["arguments"]]
    code: object = None
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    end(code)


def end(code: object) -> None:
    """End as an interpreter does, but for taking its hundreds of modules apart, object by object.

    Args:
        code: of `SystemExit`: None, a number, or something to print.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    """Preload and serve; in a child, run what was asked for."""
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    asked = serve(control)
    if asked is not None:
        become(*asked)
    os._exit(0)


if __name__ == "__main__":
    main()

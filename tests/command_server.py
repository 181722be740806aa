"""`python command_server.py SOCKET`: runs edgekd's command line, each time in a fork of itself.

A request is one line of JSON (args, cwd, env) behind two file descriptors, for stdout and stderr; the answer is the
exit code. A fork has what was imported and nothing else of the commands before it. It ends with Python's exit handlers,
but leaves it to the system to take back the memory of torch, which takes Python a second.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

# What commands import in the end. Not onnxruntime: it starts threads, which a fork would not have.
IMPORTED = ("torch.fx", "onnx", "accelerate", "rich.progress", "edgekd.cli", "edgekd.recipe", "edgekd.distill.engine")


def main() -> None:
    """Answer until killed."""
    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a fork that looked at all of this would copy it
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(16)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            line, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                return serve(line)
            line.close()


def serve(line: socket.socket) -> None:
    """One command: this process waits for it, its fork runs it."""
    _, (out, err), _, _ = socket.recv_fds(line, 1, 2)
    with line.makefile() as asked:
        request = json.loads(asked.readline())
    command = os.fork()
    if command:
        os.close(out)
        os.close(err)
        _, status = os.waitpid(command, 0)
        line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    line.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["edgekd", *request["args"]]
    sys.path[0] = request["cwd"]  # as python -m has it
    code = run()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run() -> int:
    """The exit code of `python -m edgekd`."""
    try:
        runpy.run_module("edgekd", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 (as Python does at the end)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()

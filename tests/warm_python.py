# Copyright 2026 The nemo_tutornet authors.
# SPDX-License-Identifier: Apache-2.0
"""A Python that has imported NeMo already, for tests that start programs: the import takes ten seconds.

    python warm_python.py serve SOCKET      imports NeMo once, then forks a process for each program
    python warm_python.py run SOCKET PYTHON ARGUMENT...     does what `python ARGUMENT...` does, in a process
        that the server forks; PYTHON becomes the program's `sys.executable`

`warm_python` of tests/integration/conftest.py starts the server and makes `sys.executable` a script that
calls `run`. A program has its own process, arguments, folder, environment, standard streams, signals and
exit code, as in a Python of its own, and so have the programs that it starts. It finds NeMo in `sys.modules`,
and nothing of this package. Where the server is gone, `run` starts a Python as usual.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

LENGTH, STATUS = struct.Struct("!I"), struct.Struct("!i")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTS = ("-m", "-c")  # besides the name of a script
# NeMo, and what librosa and torch leave to the first use.
MODULES = ("nemo.collections.asr.models", "nemo.utils.exp_manager")
MODULES += ("librosa.core.audio", "librosa.filters", "torch.utils.tensorboard")


def run(path: str, python: str, arguments: list[str]) -> None:
    """Asks the server for a process, passes signals on to it, and ends as it ends."""
    connection = socket.socket(socket.AF_UNIX)
    command = arguments[1:] if arguments[:1] == ["-s"] else arguments  # no option that says much
    try:
        if not command or (command[0].startswith("-") and command[0] not in STARTS):
            raise OSError("an interpreter's option")
        connection.connect(path)
    except OSError:
        os.execv(sys.executable, [sys.executable, *arguments])
    content = json.dumps(
        {"arguments": command, "python": python, "folder": os.getcwd(), "environment": dict(os.environ)}
    ).encode()
    socket.send_fds(connection, [LENGTH.pack(len(content))], [0, 1, 2])
    connection.sendall(content)
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
    (code,) = STATUS.unpack(connection.recv(STATUS.size, socket.MSG_WAITALL))
    if code < 0:
        if -code != signal.SIGKILL:  # which has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(path: str) -> list[str]:
    """Imports NeMo and waits for requests until standard input ends.

    Returns:
        In a process that was forked for a program, the program's arguments. Never in the server's own
        process.
    """
    for module in MODULES:
        importlib.import_module(module)
    # Every program imports this package anew; PYTHONDONTWRITEBYTECODE would let each compile it.
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.path.join(os.path.dirname(path), "bytecode")

    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    gc.freeze()  # a collection in a fork would copy all of this
    gc.set_threshold(10_000, 10, 10)  # as in the tests' own process
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait for programs
    while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
        connection = server.accept()[0]
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            first, streams, *_ = socket.recv_fds(connection, LENGTH.size, 3)
            content = b""
            while not first or len(content) < LENGTH.unpack(first)[0]:
                if not first or not (part := connection.recv(1 << 16)):
                    os._exit(0)  # the client was killed before it had asked
                content += part
            if (program := os.fork()) == 0:
                connection.close()
                return _become(json.loads(content), streams)
            for stream in (0, 1, 2, *streams):
                os.close(stream)
            _wait(program, connection)
        connection.close()
    os._exit(0)


def _wait(program: int, connection: socket.socket) -> None:
    """Passes signals on to a program, kills it when its client is gone, and sends its exit code."""
    ended = os.pidfd_open(program)
    while ended not in select.select([ended, connection], [], [])[0]:
        numbers = connection.recv(16)
        for number in numbers or [signal.SIGKILL]:
            os.kill(program, number)
        if not numbers:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    try:
        connection.sendall(STATUS.pack(status))
    finally:
        os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> list[str]:
    """Gives this process the streams, the folder and the environment of its client."""
    import numpy

    os.setsid()  # the client's signals are passed on, so that a terminal's would come twice
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    environment = request["environment"]
    os.environ.clear()
    os.environ.update(environment)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(environment.get("PYTHONUNBUFFERED")))
    os.chdir(request["folder"])
    numpy.random.seed()  # or all programs would draw the same numbers
    sys.executable = request["python"]
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    return request["arguments"]


def _run(arguments: list[str]) -> None:
    """Runs what `python ARGUMENT...` runs, as `__main__`."""
    if arguments[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *arguments[2:]], [""]
        sys.modules["__main__"] = program = types.ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), program.__dict__)
    elif arguments[0] == "-m":
        sys.argv, sys.path[:0] = arguments[1:], [os.getcwd()]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = arguments, [os.path.dirname(os.path.realpath(arguments[0]))]
        runpy.run_path(arguments[0], run_name="__main__")


def _ended_by(run: Callable[[], None]) -> int:
    """The exit code that Python gives a program; minus the number of the signal that ends it."""
    try:
        run()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def main() -> None:
    command, path, *arguments = sys.argv[1:]
    if command == "run":
        run(path, arguments[0], arguments[1:])
    sys.path.pop(0)  # the tests' folder
    program = serve(path)
    atexit._clear()  # what the server's libraries would do at its end
    code = _ended_by(lambda: _run(program))
    # Not the interpreter's own end: native libraries would wait for threads, and a fork has none of them.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()

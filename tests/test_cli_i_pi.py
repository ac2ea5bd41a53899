"""`i-pi`: what a server of i-PI's protocol gets, and how the client ends."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.socketio import SocketIOCalculator
from commands import refuse, run

from ewald_jax.calculator import EwaldCalculator

NUMBERS = itertools.count()


@pytest.fixture
def name():
    """Of a UNIX socket that no other test has."""
    return f"ewald_jax_{os.getpid()}_{next(NUMBERS)}"


@pytest.fixture(scope="module")
def structures(workplace):
    """Methane, and a crystal of nitrogen."""
    methane = ase.build.molecule("CH4")
    crystal = ase.Atoms("N2", [[0, 0, 0], [0.2, 0.1, 1.2]], pbc=True)
    crystal.set_cell([[4.5, 0, 0], [0.4, 4.2, 0], [0, 0.3, 4.4]])
    path = workplace / "served.extxyz"
    ase.io.write(path, [methane, crystal], format="extxyz")
    return path, [methane, crystal]


def in_background(*arguments):
    """The client in a thread, and the list that its result goes to."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(*arguments)), daemon=True)
    thread.start()
    return thread, results


@pytest.mark.parametrize("frame", [0, 1])
def test_a_server_gets_what_the_calculator_says(workplace, structures, name, frame):
    path, (*_, atoms) = structures[0], structures[1][: frame + 1]
    calculator = EwaldCalculator.from_checkpoint(workplace / "run")
    arguments = ("i-pi", workplace / "run", path, "--unix", name, "--frame", frame)
    thread, results = in_background(*arguments)
    rng = np.random.default_rng(0)
    with SocketIOCalculator(unixsocket=name, timeout=120) as server:
        for _ in range(3):
            served, alone = atoms.copy(), atoms.copy()
            served.positions += 0.05 * rng.normal(size=served.positions.shape)
            served.set_cell(served.cell[:] * 1.02)
            alone.positions, alone.cell = served.positions, served.cell
            served.calc, alone.calc = server, calculator
            energy = alone.get_potential_energy()
            assert abs(served.get_potential_energy() - energy) < 1e-6 * abs(energy)
            difference = served.get_forces() - alone.get_forces()
            assert np.abs(difference).max() < 1e-6 < np.abs(alone.get_forces()).max()
            if frame == 1:
                stress = alone.get_stress()
                assert np.abs(served.get_stress() - stress).max() < 1e-8
                assert np.abs(stress).max() > 1e-5
    thread.join(60)
    assert results[0].exit_code == 0
    lines = results[0].stderr.strip().splitlines()
    assert lines[0] == f"connected to /tmp/ipi_{name}"
    assert lines[-1].endswith("ended the connection after 3 structures")


class Server:
    """A server that speaks only what a test makes it say."""

    def __init__(self, *messages):
        self._socket = socket.socket(socket.AF_INET)
        self._socket.bind(("localhost", 0))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        self._messages = messages
        self.thread = threading.Thread(target=self._speak, daemon=True)
        self.thread.start()

    def _speak(self):
        connection, _ = self._socket.accept()
        for message in self._messages:
            connection.sendall(message)
        connection.close()
        self._socket.close()


def posdata(count, positions):
    matrix = np.eye(3).tobytes()
    natoms = np.array([count], np.int32).tobytes()
    return b"POSDATA     " + 2 * matrix + natoms + np.asarray(positions, float).tobytes()


def test_a_server_that_goes_away_or_makes_no_sense(workplace, structures):
    for messages, sentence in (
        ([b"POSDATA     ", b"123"], "lost the server at localhost:"),
        ([b"GET / HTTP/1"], "sent what is no i-PI message for the 5 atoms"),
        ([b"\xff" * 12], "sent what is no i-PI message"),
        ([posdata(2, np.zeros((2, 3)))], "sent what is no i-PI message for the 5 atoms"),
        ([posdata(5, np.zeros((5, 3)))], "after 0 structures: the structure has atoms"),
    ):
        server = Server(*messages)
        arguments = (
            workplace / "run",
            structures[0],
            "--port",
            server.port,
            "--no-progress",
        )
        result = run("i-pi", *arguments)
        assert result.exit_code == 2, (messages, result.output)
        first, last = result.stderr.strip().splitlines()
        assert first.startswith("connected to ") and sentence in last, (messages, last)
        server.thread.join(10)


def test_mistakes_are_one_sentence(workplace, structures, name):
    start = ("i-pi", workplace / "run", structures[0])
    error = refuse(*start, "--unix", name, "--wait", 0)
    assert f"no i-PI server answers at /tmp/ipi_{name} (No such file" in error
    assert "without a folder" in refuse(*start, "--unix", "/tmp/socket")
    assert "has no structure 2" in refuse(*start, "--unix", name, "--frame", 2)
    assert "no i-PI server answers at host.invalid" in refuse(
        *start, "--host", "host.invalid", "--wait", 0
    )


def test_ctrl_c_ends_with_one_sentence(workplace, structures, name):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"/tmp/ipi_{name}")
    try:
        listening.listen()
        arguments = [workplace / "run", structures[0], "--unix", name, "--no-progress"]
        tests = os.path.dirname(__file__)
        path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
        client = subprocess.Popen(
            [sys.executable, "-m", "ewald_jax.cli", "i-pi", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = listening.accept()
        assert client.stderr.readline() == f"connected to /tmp/ipi_{name}\n"
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=60)
        connection.close()
    finally:
        listening.close()
        os.unlink(f"/tmp/ipi_{name}")
    assert client.returncode == 130
    assert errors == (
        f"interrupted after 0 structures, the connection to /tmp/ipi_{name} is closed\n"
    )

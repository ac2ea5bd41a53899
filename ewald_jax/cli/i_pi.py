"""`ewald-jax i-pi`: forces for i-PI, or any other server of its protocol, through a socket."""

import time
import warnings
from typing import Annotated

import ase
import typer

from ewald_jax.cli import simulation as run
from ewald_jax.cli.common import (
    INTERRUPTED,
    Checkpoint,
    Precision,
    Progress,
    Which,
    command,
    note,
    progress_bar,
)
from ewald_jax.typing import InputError

_RETRY_SECONDS = 0.2
_DEFAULT_PORT = 31415


@command
def i_pi(
    checkpoint: Checkpoint,
    structures: run.Structures,
    unix: Annotated[
        str | None, typer.Option(help="Name of a UNIX socket: i-PI's <address>.")
    ] = None,
    host: Annotated[str, typer.Option(help="Of the server, without --unix.")] = "localhost",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of the server, without --unix.")
    ] = _DEFAULT_PORT,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for a server to appear.")
    ] = 10.0,
    frame: run.Frame = 0,
    which: Which = "best",
    skin: run.Skin = 0.5,
    strict: run.Strict = False,
    precision: Precision = None,
    progress: Progress = True,
) -> None:
    """Compute energies, forces and virials for an i-PI server until it ends.

    The structure gives elements, their order and the periodic directions, which i-PI does not
    send; positions and cell are the server's. A structure that the model refuses ends the
    client, and the server sees its connection closed.
    """
    if unix is not None and (not unix or "/" in unix):
        raise InputError(
            f"--unix must be the name of a socket, without a folder, not {unix!r}"
        )
    atoms = run.nth_structure(structures, frame)
    atoms.calc = run.load_calculator(checkpoint, which, skin, strict, precision)
    # Before there is a connection: what cannot be computed must not stop a server.
    atoms.get_potential_energy()
    client, place = connect(unix, host, port, wait)
    count, interrupted = serve(client, atoms, place, progress)
    if interrupted:
        note(f"interrupted after {count} structures, the connection to {place} is closed")
        raise typer.Exit(INTERRUPTED)
    note(f"the server at {place} ended the connection after {count} structures")


def connect(unix: str | None, host: str, port: int, wait: float):
    """A connection to a server.

    Args:
        unix: Name of a UNIX socket, None for the internet.
        host: Of the server.
        port: Of the server.
        wait: Seconds to try.

    Returns:
        ASE's client, and the place of the server in words.

    Raises:
        InputError: If there is none.
    """
    from ase.calculators.socketio import SocketClient, actualunixsocketname

    place = f"{host}:{port}" if unix is None else actualunixsocketname(unix)
    limit = time.monotonic() + wait
    while True:
        with warnings.catch_warnings():
            # ASE leaves the socket of a failed attempt to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                return SocketClient(host=host, port=port, unixsocket=unix), place
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                early = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
        if not early or time.monotonic() > limit:
            raise InputError(f"no i-PI server answers at {place} ({reason})")
        time.sleep(_RETRY_SECONDS)


def serve(client, atoms: ase.Atoms, place: str, progress: bool) -> tuple[int, bool]:
    """Answers until the server ends.

    Args:
        client: From `connect`.
        atoms: With a calculator; moved as the server says.
        place: Of the server, for messages.
        progress: Show a bar.

    Returns:
        Structures computed, and whether Ctrl-C was pressed.

    Raises:
        InputError: If the model refuses a structure, or the server breaks off or is none of
            i-PI's protocol.
    """
    from ewald_jax.calculator.results import has_stress

    count = 0
    try:
        note(f"connected to {place}")
        with progress_bar("structures", progress) as advance:
            for count, _ in enumerate(client.irun(atoms, use_stress=has_stress(atoms)), 1):
                advance(count, None)
    except KeyboardInterrupt:
        return count, True
    except InputError as error:
        raise InputError(f"after {count} structures: {error}") from None
    except OSError as error:
        # ASE's own has no text: a server that stops in the middle of a message.
        reason = error.strerror or "closed in the middle of a message"
        raise InputError(
            f"lost the server at {place} after {count} structures ({reason})"
        ) from None
    except (AssertionError, KeyError, ValueError, NotImplementedError) as error:
        # What ASE raises for messages that it cannot read, or for another number of atoms.
        raise InputError(
            f"the server at {place} sent what is no i-PI message for the {len(atoms)} atoms "
            f"of the structure, after {count} structures ({' '.join(map(str, error.args))})"
        ) from None
    finally:
        client.close()
    return count, False

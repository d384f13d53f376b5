"""`entangled.join`: take part in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from entangled import credentials
from entangled.alignment import Fingerprint
from entangled.participation.client import CoordinatorClient
from entangled.participation.data import choose
from entangled.participation.peer import Peer
from entangled.views import View


def join(
    address: str,
    name: str,
    data: Any = None,
    *,
    classes: int | None = None,
    connect_seconds: float = 60.0,
    certs: Path | str | None = None,
    token_file: Path | str | None = None,
) -> Peer:
    """Become a peer of a run, with a training loop of one's own.

        with entangled.join("coordinator:50051", name="vit") as peer:
            x, y = peer.dataset.x, peer.dataset.y
            for batch in peer:
                p = model(x[batch.ids])                    # (rows, classes) probabilities
                target = batch.exchange(p)                 # waits until everyone's is in
                loss = ce(y[batch.ids], p) + target.weight * kl(p, target.probabilities)
                ...
                batch.report(loss=float(loss))

    Args:
        address: the coordinator's, `host:port` or `unix:PATH`.
        name: of this peer in the experiment.
        data: the samples that predictions are exchanged on, which must be every peer's: a data set of
            `entangled.datasets`, or its name; a `Fingerprint`; sample ids 0, 1, … or their number; a `View`; or a
            function that gives one of them for the run's experiment. None loads what the experiment names. With ids
            alone, contents are not compared, which all peers must then agree on.
        classes: number of classes, where `data` is ids or their number.
        connect_seconds: how long to wait for a coordinator to be there.
        certs: the folder with this peer's certificate, for TLS.
        token_file: with this peer's token; else the environment variable ENTANGLED_TOKEN holds it, if there is one.

    Returns:
        The peer: a context manager, and an iterator over batches.

    Raises:
        UnreachableError: nobody answers at `address`.
        MembershipError: the experiment has no such peer, or it is there already, or these credentials are not its.
        CredentialsError: the certificates or the token cannot be used.
        AlignmentError: the data set is another one than the other peers'.
        DataError: the data set cannot be had.
    """
    shown = credentials.load(Path(certs) if certs else None, Path(token_file) if token_file else None)
    return join_over(CoordinatorClient(address, name, connect_seconds, shown), data, classes)


def join_over(
    client: CoordinatorClient, data: Any = None, classes: int | None = None, mine: Fingerprint | None = None
) -> Peer:
    """Become a peer of a run over a client, which is closed if that fails. See `join`.

    Args:
        client: the peer's.
        data: as of `join`.
        classes: as of `join`.
        mine: the data's fingerprint, where it is known.
    """
    try:
        chosen = choose(client.experiment, client.peer, data, classes)
        if isinstance(chosen, View):
            chosen = chosen.only(client.agree(chosen.names))
        return Peer(client, client.experiment, client.peer, client.run_id, chosen, mine=mine)
    except BaseException:
        client.close()
        raise

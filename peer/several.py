"""Several peers in one process: a thread for each, and one stream to the coordinator for all of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from entangled import process
from entangled.alignment import Fingerprint
from entangled.credentials import Credentials
from entangled.errors import CredentialsError, EntangledError, MembershipError, RunFailedError
from entangled.experiment import Experiment
from entangled.participation.client import CoordinatorClient
from entangled.participation.data import Data, choose, fingerprint_of
from entangled.participation.joining import join_over
from entangled.participation.link import Link
from entangled.participation.peer import Peer
from entangled.views import View


class _Loaded(NamedTuple):
    """What the peers of a process have in common, in memory once."""

    data: Data
    fingerprint: Fingerprint


def train(
    names: Sequence[str],
    address: str,
    connect_seconds: float,
    shown: Credentials,
    prepare: Callable[[Experiment], None],
    work: Callable[[Peer], None],
) -> None:
    """Train several peers, to the end of each.

    One that fails tells the coordinator, which ends the run for everybody, or lets the others go on without it, as the
    experiment says. Then it is no failure of this process, unless all of its peers have failed.

    Args:
        names: the peers'.
        address: the coordinator's.
        connect_seconds: how long to wait for the coordinator to be there.
        shown: credentials, of which there must be none: each proves one peer's name.
        prepare: makes the process ready for the run's experiment, before any data is loaded.
        work: trains one peer, on a thread of its name.

    Raises:
        CredentialsError: there are some.
        MembershipError: a name is given twice, or is no peer's.
        EntangledError: why the first peer failed.
    """
    if shown.token or shown.certificates:
        raise CredentialsError(
            "a certificate or token proves one peer's name, so that each peer needs a process of its own",
            expected="one peer, or a coordinator on this host that asks for no credentials",
            got=f"{len(names)} peers",
        )
    if len(set(names)) < len(names):
        raise MembershipError("a peer is named twice", got=" ".join(names))
    link = Link(address, connect_seconds, several=True)
    try:
        experiment = link.experiment
        _agree(names, experiment)
        prepare(experiment)
        failures = _Together(names, link, work).run()
    finally:
        link.close()
    if not failures or (experiment.exchange.continues and len(failures) < len(names)):
        return
    own = [error for error in failures if not isinstance(error, RunFailedError)]
    raise (own or failures)[0]


def _agree(names: Sequence[str], experiment: Experiment) -> None:
    """Raise a RefusedError if these cannot be the peers of one process."""
    unknown = [name for name in names if name not in experiment.peers]
    if unknown:
        raise MembershipError(
            "no such peer in this experiment", expected=" or ".join(experiment.peer_names), got=unknown[0]
        )
    experiment.check_share(names)


class _Together:
    """The threads of a process's peers."""

    def __init__(self, names: Sequence[str], link: Link, work: Callable[[Peer], None]) -> None:
        self._names, self._link, self._work = names, link, work
        self._failures: list[EntangledError] = []
        self._loading = threading.Lock()
        self._loaded: _Loaded | None = None

    def run(self) -> list[EntangledError]:
        """Train; why peers failed, in the order in which they did."""
        threads = [threading.Thread(target=self._train, args=(name,), name=name, daemon=True) for name in self._names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._failures

    def _train(self, name: str) -> None:
        try:
            client = CoordinatorClient(self._link.address, name, link=self._link)
            loaded = self._load(name)
            with join_over(client, loaded and loaded.data, mine=loaded and loaded.fingerprint) as joined:
                self._work(joined)
        except EntangledError as error:
            _log_of(name).error("cannot go on: %s", error)
            self._failures.append(error)
        except Exception as error:
            _log_of(name).exception("cannot go on")
            self._failures.append(EntangledError(process.one_line(error)))

    def _load(self, name: str) -> _Loaded | None:
        """The experiment's data, loaded by whichever peer comes first; None where each has a view of its own."""
        experiment = self._link.experiment
        if experiment.vertical:
            return None
        with self._loading:
            if self._loaded is None:
                data = choose(experiment, name, None, None)
                if isinstance(data, View):
                    return None
                self._loaded = _Loaded(data, fingerprint_of(data))
            return self._loaded


def _log_of(name: str) -> logging.Logger:
    """Of its own, so that what the others of the process say does not count against it."""
    return logging.getLogger(f"{__name__}.{name}")

"""Hosts that are network namespaces of this one, each with addresses and a TCP stack of its own, and links between.

Needs root and iproute2. A link is a pair of veth devices, which can be cut; or, since not every kernel has netem, a
pair of TUN devices with this process in between, which holds every packet back and loses every so-manieth.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from typing import Self

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def ip(*arguments: str) -> None:
    """Run `ip`; the error that it prints, if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str:
    """Why there can be no such hosts here, or empty."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    try:
        with Hosts("probe") as hosts:
            hosts.link("probe", "10.83.0.1", "10.83.0.2")
    except OSError as error:
        return str(error)
    return ""


class Hosts:
    """Some hosts by name, of which the first is linked to each of the others. A context manager."""

    def __init__(self, first: str, *others: str) -> None:
        self._names = {name: f"entangled-{os.getpid()}-{name}" for name in (first, *others)}
        self._first = first
        self._links: list[SlowLink] = []
        self._devices = 0

    def __enter__(self) -> Self:
        for space in self._names.values():
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()
        for space in self._names.values():
            with contextlib.suppress(OSError):
                ip("netns", "del", space)

    def on(self, name: str) -> list[str]:
        """What a command begins with that is to run on a host."""
        return ["ip", "netns", "exec", self._names[name]]

    def link(self, other: str, near: str, far: str) -> None:
        """A fast link between the first host, at address `near`, and another one at `far`."""
        ends = self._new_devices()
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for device, name, address in zip(ends, (self._first, other), (near, far), strict=True):
            ip("link", "set", device, "netns", self._names[name])
            self._address(device, name, address)

    def slow_link(self, other: str, near: str, far: str, delay: float, lose: int) -> SlowLink:
        """A link on which a packet takes `delay` seconds each way, and every `lose`-th never arrives."""
        ends = self._new_devices()
        link = SlowLink(*ends, delay=delay, lose=lose)
        self._links.append(link)
        for device, name, address in zip(ends, (self._first, other), (near, far), strict=True):
            ip("link", "set", device, "netns", self._names[name])
            self._address(device, name, address)
        link.start()
        return link

    def cut(self, other: str) -> None:
        """Let no packet through on a host's fast link."""
        ip("-n", self._names[other], "link", "set", self._device(other), "down")

    def restore(self, other: str) -> None:
        """Let them through again."""
        ip("-n", self._names[other], "link", "set", self._device(other), "up")

    def _device(self, name: str) -> str:
        listed = subprocess.run(
            ["ip", "-n", self._names[name], "-o", "link", "show", "type", "veth"],
            capture_output=True,
            text=True,
            check=True,
        )
        return listed.stdout.split(":")[1].split("@")[0].strip()

    def _new_devices(self) -> tuple[str, str]:
        self._devices += 1
        stem = f"e{os.getpid() % 10**7}-{self._devices}"
        return f"{stem}a", f"{stem}b"

    def _address(self, device: str, name: str, address: str) -> None:
        ip("-n", self._names[name], "address", "add", f"{address}/24", "dev", device)
        ip("-n", self._names[name], "link", "set", device, "up")


class SlowLink:
    """Two TUN devices with a thread between them that carries packets from each to the other, late, and not all."""

    def __init__(self, one: str, other: str, *, delay: float, lose: int) -> None:
        self._delay, self._lose = delay, lose
        self.carried = 0
        self.lost = 0
        self._ends = [_tun(one), _tun(other)]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def start(self) -> None:
        """Begin to carry packets."""
        self._thread.start()

    def close(self) -> None:
        """Take the devices away."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        held: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in self._ends}
        while not self._closing.is_set():
            due = [packets[0][0] for packets in held.values() if packets]
            wait = max(0.0, min(due) - time.monotonic()) if due else 0.1
            for end in select.select(self._ends, [], [], min(wait, 0.1))[0]:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(end, 65536)
                        self.carried += 1
                        if self.carried % self._lose == 0:
                            self.lost += 1
                        else:
                            held[end].append((time.monotonic() + self._delay, packet))
            for end, packets in held.items():
                other = self._ends[1 - self._ends.index(end)]
                while packets and packets[0][0] <= time.monotonic():
                    with contextlib.suppress(OSError):  # a full queue loses packets, as on any link
                        os.write(other, packets[0][1])
                    packets.popleft()


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(end)
        raise
    return end

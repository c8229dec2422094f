"""A network of TUN devices, whose packets this process carries, so that it can lose and delay them.

`tc netem` on a bridge would do the same, where the kernel has it; that of small virtual machines
often has not. A packet that is lost is told to nobody, as with a cable that is pulled.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import struct
import subprocess
import threading
from ipaddress import IPv4Address
from pathlib import Path

TUN = "/dev/net/tun"
MAX_PACKET_BYTES = 65_536
# Of linux/if_tun.h: packets without a header of the device's own.
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000


# What else the cluster needs of a machine, by its name.
PROGRAMS = {name: shutil.which(name) for name in ("ip", "unshare", "nsenter", "cc")}


def run(program: str, *arguments: str | Path) -> None:
    """Run one of PROGRAMS to its end."""
    subprocess.run([PROGRAMS[program] or program, *arguments], check=True)


class Cable:
    """The connection of one address. What comes from there is lost or delayed as it says."""

    def __init__(self, device: str, address: str) -> None:
        self.address = IPv4Address(address)
        self.is_cut = False
        self.delay_seconds = 0.0
        self.loss = 0.0
        self.fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        options = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(self.fd, _TUNSETIFF, options)


class Network:
    """Carries packets between its cables, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._cables: dict[bytes, Cable] = {}
        self._random = random.Random(0)  # noqa: S311 (the same losses each time)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="network", daemon=True).start()

    def attach(self, device: str, address: str) -> Cable:
        """Make a device in this network namespace; it may be moved to another one."""
        cable = Cable(device, address)
        self._cables[cable.address.packed] = cable
        self._loop.call_soon_threadsafe(self._loop.add_reader, cable.fd, self._carry, cable)
        return cable

    def detach(self, cable: Cable) -> None:
        """Remove the device."""
        self._loop.call_soon_threadsafe(self._remove, cable)

    def _remove(self, cable: Cable) -> None:
        self._loop.remove_reader(cable.fd)
        if self._cables.get(cable.address.packed) is cable:
            del self._cables[cable.address.packed]
        os.close(cable.fd)
        cable.is_cut = True

    def _carry(self, cable: Cable) -> None:
        try:
            packet = os.read(cable.fd, MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:  # its namespace is gone, and the device with it
            self._loop.remove_reader(cable.fd)
            return
        if cable.is_cut or self._random.random() < cable.loss:
            return
        if cable.delay_seconds:
            self._loop.call_later(cable.delay_seconds, self._deliver, packet)
        else:
            self._deliver(packet)

    def _deliver(self, packet: bytes) -> None:
        receiver = self._cables.get(packet[16:20])  # the destination of an IPv4 packet
        if receiver is not None and not receiver.is_cut:
            with contextlib.suppress(OSError):  # not up yet, or its queue is full
                os.write(receiver.fd, packet)

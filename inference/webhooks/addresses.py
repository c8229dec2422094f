"""The addresses that webhooks may be sent to: public ones alone."""

import socket
import threading
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

# All that the registries of IANA keep from being global unicast addresses, cloud metadata and
# carrier-grade NAT among them. Of IPv6, only what lies in 2000::/3 is asked about.
_NOT_PUBLIC = [
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")


class RefusedAddressError(Exception):
    """Nothing may be sent there; the message says why."""


class UnresolvedHostError(OSError):
    """The name has no address."""


class SlowNameServerError(UnresolvedHostError):
    """Whether it has one was not found out in time."""


def carried(address: Address) -> Address:
    """The IPv4 address that packets to an IPv6 one reach in the end, or else the address."""
    if not isinstance(address, IPv6Address):
        return address
    if address in _NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address


def is_public(address: Address) -> bool:
    """Whether the address is on the public internet, not in a private network."""
    address = carried(address)
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in block for block in _NOT_PUBLIC)


def literal(host: str) -> Address | None:
    """The address that a host is, if it is no name: 127.1, 0x7f.1 and 2130706433 are one, too."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def checked(host: str, seconds: float, *, exempt: bool = False) -> list[Address]:
    """The addresses of a host, each of which may be connected to.

    Raises RefusedAddressError when one of them is not public, unless the host is exempt; and
    UnresolvedHostError when there are none, after `seconds` at the latest.
    """
    address = literal(host)
    addresses = [address] if address else resolve(host, seconds)
    if not exempt and not all(is_public(each) for each in addresses):
        # Naming the address would disclose our network to the caller.
        raise RefusedAddressError(
            f"{host} leads to an address that is not public: use another host, or have "
            "WEBHOOK_ALLOWED_HOSTS name this one."
        )
    return addresses


def resolve(host: str, seconds: float) -> list[Address]:
    """All addresses of a name, the preferred first; raises UnresolvedHostError."""
    try:
        return look_up(host).result(max(seconds, 0))
    except TimeoutError:
        raise SlowNameServerError(f"{host} was not resolved in time") from None


def look_up(host: str) -> Future[list[Address]]:
    """The addresses of a name, or UnresolvedHostError, in the end.

    In a thread of its own: the resolver's own time-out cannot be set, and is too long.
    """
    answer = Future[list[Address]]()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answer.set_result([ip_address(str(sockaddr[0])) for *_, sockaddr in found])
        except (OSError, UnicodeError) as exc:
            answer.set_exception(UnresolvedHostError(f"{host} does not resolve: {exc}"))

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    return answer

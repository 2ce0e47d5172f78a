"""Who listens where: the ports that a process and all that it has started have open."""

from __future__ import annotations

import contextlib
import ipaddress

import psutil


def open_to_others(process: psutil.Process) -> list[str]:
    """The listening sockets that other machines can reach: address, port and command of each."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for connection in one.net_connections("inet"):
                if connection.status != psutil.CONN_LISTEN:
                    continue
                address = ipaddress.ip_address(connection.laddr.ip)
                # gRPC's are `::ffff:127.0.0.1`.
                if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
                    found.append(f"{connection.laddr.ip}:{connection.laddr.port} {' '.join(one.cmdline())[:80]}")
    return found

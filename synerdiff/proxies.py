"""The HTTP proxy of a call, by the environment as gRPC reads it.

Processes of one deployment reach each other directly. A client may need a proxy to a scheduler that is elsewhere, never
to one on its own machine.
"""

import contextlib
import ipaddress
import os
from urllib.parse import urlsplit

# In the order in which gRPC's core looks at them.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


def proxy_to(target: str) -> str:
    """The proxy for a gRPC target, as "http://host:port of $http_proxy" without its password; "" for none."""
    variable = next((name for name in PROXY_VARIABLES if os.environ.get(name)), None)
    host = _host(target)
    if variable is None or _is_local(host) or _is_excepted(host):
        return ""
    proxy = urlsplit(os.environ[variable])
    return f"{proxy.scheme}://{proxy.netloc.rpartition('@')[2]} of ${variable}"


def _host(target: str) -> str:
    """The host of "host:port", "[v6]:port", "dns:///host:port", the first of "ipv4:ip:port,..."; "" of a socket."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return ""
    first = target.removeprefix("ipv4:").removeprefix("ipv6:").partition(",")[0]
    return urlsplit(f"//{first.rpartition('/')[2]}").hostname or ""


def _is_local(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    return False


def _is_excepted(host: str) -> bool:
    """Whether an entry of the exceptions is the end of the host's name, or a network that its address is of."""
    entries = next((os.environ[name] for name in EXCEPTION_VARIABLES if os.environ.get(name)), "")
    for entry in filter(None, (entry.strip() for entry in entries.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False):
                return True
    return False

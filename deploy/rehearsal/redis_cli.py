#!/usr/bin/env -S python -I -S
"""Stands for `redis-cli`, where no Redis tools are installed: `redis_cli.py [-h HOST] [-p PORT] [-e] ping`."""

import argparse
import socket
import sys

parser = argparse.ArgumentParser(description=__doc__, add_help=False)
parser.add_argument("-h", default="127.0.0.1")
parser.add_argument("-e", action="store_true")
parser.add_argument("-p", type=int, default=6379)
parser.add_argument("command", choices=("ping",))
options = parser.parse_args()
try:
    with socket.create_connection((options.h, options.p), timeout=5) as connection:
        connection.sendall(f"{options.command}\r\n".encode())
        reply = connection.recv(256).decode()
except OSError as error:
    sys.exit(f"Could not connect to Redis: {error}")
print(reply.strip())
sys.exit(1 if reply.startswith("-") else 0)

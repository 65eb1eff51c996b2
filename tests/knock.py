"""Knocks at a port, without a token, with everything that Ray would understand, and says in JSON what came of it.

Usage: python -m tests.knock ADDRESS PORT
"""

from __future__ import annotations

import http.client
import json
import sys

import grpc

PAGES = (
    ("GET", "/metrics"),
    ("GET", "/api/jobs/"),
    ("GET", "/api/serve/applications/"),
    ("GET", "/api/job_agent/jobs/1/logs"),
    ("GET", "/logs/"),
    ("POST", "/get_runtime_envs_info"),
)
CALLS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "LogService/ListLogs",
    "RayletDriver/ClusterInfo",
)
SECONDS = 5


def page(address: str, port: int, method: str, path: str) -> str:
    """The status of a page."""
    connection = http.client.HTTPConnection(address, port, timeout=SECONDS)
    try:
        connection.request(method, path)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def call(channel: grpc.Channel, method: str) -> str:
    """The code of a call with an empty message."""
    try:
        channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=SECONDS)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def knock(address: str, port: int) -> dict[str, str]:
    """What each page and call came to."""
    result = {path: page(address, port, method, path) for method, path in PAGES}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        return result | {method: call(channel, method) for method in CALLS}


if __name__ == "__main__":
    json.dump(knock(sys.argv[1], int(sys.argv[2])), sys.stdout)

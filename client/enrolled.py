"""Whether the server knows a node's key, without starting the node."""

from __future__ import annotations

from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpara.errors import ConfigError, FederationError


def enrolled(address: str, authority: Path, key_file: Path) -> bool:
    """Ask for an activation that cannot be: with a heartbeat of 0 s, which is only looked at where the key is known.

    So a node that is running is not disturbed, and one that is not does not seem to be.

    Raises:
        ConfigError: no such key, or not one of a node.
        FederationError: the server gave another answer.
    """
    try:
        key = load_ssh_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key_file} is no private key in OpenSSH's format: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{key_file} is no elliptic-curve key: use the one that init wrote")
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    versions = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    with FleetHttpClient.from_server_address(address, False, str(authority), [versions, signing]) as client:
        try:
            client.ActivateNode(ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key())))
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            code = known.code if known else None
            if code in (ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED):
                return code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
            raise FederationError(f"HTTP {error.response.status_code}: {error.response.text[:200]}") from None
        except httpx.HTTPError as error:
            raise FederationError(f"no answer: {error}") from None
    raise FederationError("it took an activation with a heartbeat of 0 s: it runs another version of Flower")

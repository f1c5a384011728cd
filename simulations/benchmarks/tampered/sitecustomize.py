"""Makes the programs of one node misbehave as a file says. For the fault campaign: on that node's path alone."""

import builtins
import os
import signal
import sys
import time
from datetime import timedelta

_import = builtins.__import__


def mode():
    try:
        with open(os.environ["FEDPARA_TAMPER"]) as file:
            return file.read().strip()
    except (KeyError, OSError):
        return ""


def tamper_blob(blob):
    kind = mode()
    if not kind:
        with open(os.environ["FEDPARA_TAMPER"] + ".blob", "wb") as file:
            file.write(blob)
    changed = {
        "garbage": lambda: os.urandom(len(blob)),
        "truncated": lambda: blob[: len(blob) // 2],
        "a flipped bit": lambda: blob[:200] + bytes([blob[200] ^ 1]) + blob[201:],
        "empty": lambda: b"",
        "huge": lambda: blob + bytes(50_000_000),
        "of an earlier round": earlier_blob,
    }
    return changed[kind]() if kind in changed else blob


def earlier_blob():
    with open(os.environ["FEDPARA_TAMPER"] + ".blob", "rb") as file:
        return file.read()


def tamper_reply(reply):
    import torch
    from flwr.app import ArrayRecord

    kind = mode()
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "exits":
        os._exit(3)
    elif kind == "raises":
        raise RuntimeError("something of the client's own")
    elif kind == "out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    elif kind == "hangs":
        time.sleep(10**6)
    elif kind == "negative weight":
        reply.content.metric_records["metrics"]["num-examples"] = -5
    elif kind in ("not a number", "far away") and "arrays" in reply.content.array_records:
        arrays = {k: torch.from_numpy(a.numpy().copy()) for k, a in reply.content.array_records["arrays"].items()}
        for tensor in arrays.values():
            if tensor.is_floating_point():
                tensor.mul_(1000.0) if kind == "far away" else tensor.fill_(float("nan"))
        reply.content.array_records["arrays"] = ArrayRecord(arrays)


def patch_client(module):
    packed_record, encode, code_hash = module.packed_record, module._Link.encode, module.code_hash

    def tampered_encode(self, reply, received):
        tamper_reply(reply)
        return encode(self, reply, received)

    module.packed_record = lambda blob: packed_record(tamper_blob(blob))
    module._Link.encode = tampered_encode
    module.code_hash = lambda: "00000000" if mode() == "other code" else code_hash()


def patch_push(module):
    push = module.FleetHttpClient.PushMessages

    def twice(self, request):
        if mode() == "sent twice":
            push(self, request)
        return push(self, request)

    module.FleetHttpClient.PushMessages = twice


def patch_clock(module):
    now = module.now
    module.now = lambda: now() + timedelta(hours=1) if mode() == "a clock ahead" else now()


PATCHES = {
    "client.codec_mod": ("_Link", patch_client),
    "flwr.supernode.fleet_http_client": ("FleetHttpClient", patch_push),
    "flwr.supernode.node_auth_http_interceptor": ("NodeAuthHttpInterceptor", patch_clock),
}


def tampering_import(name, *args, **kwargs):
    found = _import(name, *args, **kwargs)
    for wanted, (ready, patch) in list(PATCHES.items()):
        module = sys.modules.get(wanted)
        if module is not None and hasattr(module, ready) and not getattr(module.__spec__, "_initializing", False):
            del PATCHES[wanted]
            patch(module)
    return found


builtins.__import__ = tampering_import

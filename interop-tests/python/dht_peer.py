"""A plain hivemind DHT node, driven line by line.

Usage: python dht_peer.py [--client-mode | --quic] [--sign] [INITIAL_PEER …]; it listens on TCP, with --quic on QUIC and nothing else
With --sign it signs what it owns, and checks what others own, by RSASignatureValidator.
First line out: {"peer_id": …, "addrs": […], "node_id": hex, "joined_s": seconds}. Then one answer per order, until stdin closes:
  {"op": "store", "key": k, "value": v, "expires_in": seconds[, "subkey": s]}  -> {"stored": bool, "expiration": t}
  {"op": "get", "key": k[, "latest": bool]}  -> {"value": v, "expiration": t} | {"entries": [[s, v, t], …], "expiration": t} | {"missing": true}
  {"op": "ping", "peer_id": base58}  -> {"node_id": hex}; the address, if unknown, is for the daemon to find
  {"op": "peers"}  -> {"table": number of nodes in the routing table}
  {"op": "owner"}  -> {"marker": what a subkey contains that this node owns, with --sign}
  {"op": "modules", "uids": [uid, …]}  -> {"servers": [{peer: {field: value}} per uid], "spans": {peer: [start, end]}}, as Petals reads them
  {"op": "time", "what": "store" | "get" | "latest", "keys": [k, …], "subkeys": [s, …], "bytes": n[, "together": bool]}
      -> {"seconds": [how long each key took, or all together], "complete": bool}
An order that fails is answered with {"error": text}.
"""

import asyncio
import dataclasses
import math
import sys
import time
import types

import peer
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import get_dht_time


def plain(value):
    """MessagePack values as JSON has them: tuples as lists, bytes as hex behind a mark."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


async def store(node: DHTNode, order: dict) -> dict:
    expiration = get_dht_time() + order["expires_in"]
    subkey = {"subkey": order["subkey"]} if "subkey" in order else {}
    stored = await node.store(order["key"], order["value"], expiration, **subkey)
    return {"stored": bool(stored), "expiration": expiration}


async def get(node: DHTNode, order: dict) -> dict:
    found = await node.get(order["key"], latest=order.get("latest", False))
    if found is None:
        return {"missing": True}
    if isinstance(found.value, dict):
        entries = [[plain(key), plain(entry.value), entry.expiration_time] for key, entry in found.value.items()]
        return {"entries": entries, "expiration": found.expiration_time}
    return {"value": plain(found.value), "expiration": found.expiration_time}


async def ping(node: DHTNode, order: dict) -> dict:
    stub = node.protocol.get_stub(PeerID.from_base58(order["peer_id"]))
    answer = await asyncio.wait_for(stub.rpc_ping(dht_pb2.PingRequest(validate=False), timeout=30), 30)
    return {"node_id": answer.peer.node_id.hex()}


async def peers(node: DHTNode, _order: dict) -> dict:
    return {"table": len(node.protocol.routing_table.uid_to_peer_id)}


async def owner(node: DHTNode, _order: dict) -> dict:
    return {"marker": node.protocol.record_validator.local_public_key.decode()}


async def modules(node: DHTNode, order: dict) -> dict:
    """What Petals' own reader makes of the records, and the spans that its clients would use."""
    from petals.data_structures import ServerState
    from petals.utils.dht import _get_remote_module_infos, compute_spans

    workers = types.SimpleNamespace(num_workers=None)
    infos = await _get_remote_module_infos(
        workers, node, order["uids"], active_adapter=None, expiration_time=None, latest=True
    )

    def fields(server) -> dict:
        told = dataclasses.asdict(server)
        return {**told, "state": server.state.name, "next_pings": None}

    spans = compute_spans(infos, min_state=ServerState.ONLINE)
    return {
        "servers": [{who.to_base58(): fields(info) for who, info in module.servers.items()} for module in infos],
        "spans": {who.to_base58(): [span.start, span.end] for who, span in spans.items()},
    }


async def time_each(node: DHTNode, order: dict) -> dict:
    """Does something for each key in turn, or for all at once, and says how long each took."""
    keys, subkeys, value = order["keys"], order["subkeys"], b"\x07" * order["bytes"]
    seconds, complete = [], True
    size = len(keys) if order.get("together") else 1
    for part in (keys[at : at + size] for at in range(0, len(keys), size)):
        started = time.perf_counter()
        if order["what"] == "store":
            pairs = [(key, subkey) for key in part for subkey in subkeys]
            names, tags = [key for key, _ in pairs], [tag for _, tag in pairs]
            stored = await node.store_many(names, [value] * len(pairs), get_dht_time() + 600, subkeys=tags)
            complete &= all(stored.values())
        else:
            sufficient = math.inf if order["what"] == "latest" else None
            found = await node.get_many(part, sufficient_expiration_time=sufficient)
            complete &= all(entry is not None and len(entry.value) == len(subkeys) for entry in found.values())
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "complete": complete}


ORDERS = {"store": store, "get": get, "ping": ping, "peers": peers, "owner": owner, "modules": modules, "time": time_each}


async def main() -> None:
    client_mode = "--client-mode" in sys.argv
    initial_peers = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    validator = RSASignatureValidator() if "--sign" in sys.argv else None
    carrier = "udp/0/quic-v1" if "--quic" in sys.argv else "tcp/0"
    listen = [] if client_mode else [f"/ip4/127.0.0.1/{carrier}"]
    started = time.perf_counter()
    node = await DHTNode.create(
        initial_peers=initial_peers,
        client_mode=client_mode,
        host_maddrs=listen,
        use_relay=False,
        use_auto_relay=False,
        record_validator=validator,
    )
    joined_s = time.perf_counter() - started
    addrs = [] if client_mode else [str(addr) for addr in await node.get_visible_maddrs()]
    peer.say(peer_id=node.peer_id.to_base58(), addrs=addrs, node_id=node.node_id.to_bytes().hex(), joined_s=joined_s)
    while (order := await asyncio.to_thread(peer.read)) is not None:
        try:
            peer.say(**await ORDERS[order["op"]](node, order))
        except Exception as error:  # the test judges
            peer.say(error=repr(error))
    await node.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
    peer.finish(0)

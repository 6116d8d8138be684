"""A plain hivemind DHT node, driven line by line.

Usage: python dht_peer.py [--client-mode | --quic] [INITIAL_PEER …]; it listens on TCP, with --quic on QUIC and nothing else
First line out: {"peer_id": …, "addrs": […], "node_id": hex}. Then one answer per order, until stdin closes:
  {"op": "store", "key": k, "value": v, "expires_in": seconds[, "subkey": s]}  -> {"stored": bool, "expiration": t}
  {"op": "get", "key": k[, "latest": bool]}  -> {"value": v, "expiration": t} | {"entries": [[s, v, t], …], "expiration": t} | {"missing": true}
  {"op": "ping", "peer_id": base58}  -> {"node_id": hex}; the address, if unknown, is for the daemon to find
  {"op": "peers"}  -> {"table": number of nodes in the routing table}
An order that fails is answered with {"error": text}.
"""

import asyncio
import sys

import peer
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


ORDERS = {"store": store, "get": get, "ping": ping, "peers": peers}


async def main() -> None:
    client_mode = "--client-mode" in sys.argv
    initial_peers = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    carrier = "udp/0/quic-v1" if "--quic" in sys.argv else "tcp/0"
    listen = [] if client_mode else [f"/ip4/127.0.0.1/{carrier}"]
    node = await DHTNode.create(
        initial_peers=initial_peers, client_mode=client_mode, host_maddrs=listen, use_relay=False, use_auto_relay=False
    )
    addrs = [] if client_mode else [str(addr) for addr in await node.get_visible_maddrs()]
    peer.say(peer_id=node.peer_id.to_base58(), addrs=addrs, node_id=node.node_id.to_bytes().hex())
    while (order := await asyncio.to_thread(peer.read)) is not None:
        try:
            peer.say(**await ORDERS[order["op"]](node, order))
        except Exception as error:  # the test judges
            peer.say(error=repr(error))
    await node.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
    peer.finish(0)

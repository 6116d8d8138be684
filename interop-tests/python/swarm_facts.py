"""What Petals itself finds out about a swarm, beside what a health map says of the same one.

In:  {"initial_peers": [ADDR, …], "prefix": P, "n_blocks": n, "map": URL, "ask": [peer id, …]}
Out: {"spans": {peer id: {"state", "start", "end", "server_info": {…}}},   from get_remote_module_infos and compute_spans
      "answers": {peer id: true | error text},      rpc_info of the servers that say they are online, as health.petals.dev asks
      "state": JSON of URL/api/v1/state,
      "reachable": {peer id: true | error text}}    validate_reachability, pointed at URL, for each of "ask"
"""

import asyncio
from functools import partial

import hivemind
import peer
import requests
from hivemind.p2p import PeerID
from hivemind.proto import runtime_pb2
from petals.data_structures import ServerState
from petals.server import reachability
from petals.server.handler import TransformerConnectionHandler
from petals.utils.dht import compute_spans, get_remote_module_infos

ANSWER_LIMIT = 20  # seconds; health.petals.dev waits for 5, but nothing else runs there
MAP_LIMIT = 30


def plain(info) -> dict:
    """A ServerInfo as JSON has it, without pings: they may be infinite, and are others' measurements."""
    fields = {name: value for name, value in vars(info).items() if not name.startswith("__") and name != "next_pings"}
    return {**fields, "state": info.state.name.lower(), "adapters": list(info.adapters)}


async def ask(peers: list, _dht, node) -> dict:
    async def one(peer_id: PeerID):
        try:
            stub = TransformerConnectionHandler.get_stub(node.p2p, peer_id)
            response = await asyncio.wait_for(stub.rpc_info(runtime_pb2.ExpertUID()), ANSWER_LIMIT)
            return isinstance(hivemind.MSGPackSerializer.loads(response.serialized_info), dict)
        except Exception as error:
            return repr(error)

    return {peer_id.to_base58(): await one(peer_id) for peer_id in peers}


class Log:
    """Petals goes on without a monitor; only its log tells a yes from no answer."""

    def info(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        raise RuntimeError(text)


def validate(peer_id: str):
    try:
        reachability.validate_reachability(PeerID.from_base58(peer_id), wait_time=0, retry_delay=0.01)
        return True
    except RuntimeError as error:
        return str(error)


def main(order: dict) -> dict:
    dht = hivemind.DHT(initial_peers=order["initial_peers"], client_mode=True, start=True)
    uids = [f"{order['prefix']}.{block}" for block in range(order["n_blocks"])]
    spans = compute_spans(get_remote_module_infos(dht, uids, latest=True), min_state=ServerState.OFFLINE)
    online = [peer_id for peer_id, span in spans.items() if span.server_info.state == ServerState.ONLINE]
    answers = dht.run_coroutine(partial(ask, online))
    state = requests.get(f"{order['map']}/api/v1/state", timeout=MAP_LIMIT)
    state.raise_for_status()
    reachability.REACHABILITY_API_URL = order["map"]
    reachability.logger = Log()
    return {
        "spans": {
            peer_id.to_base58(): {"start": span.start, "end": span.end, "server_info": plain(span.server_info)}
            for peer_id, span in spans.items()
        },
        "answers": answers,
        "state": state.json(),
        "reachable": {peer_id: validate(peer_id) for peer_id in order["ask"]},
    }


if __name__ == "__main__":
    peer.run_once(main)

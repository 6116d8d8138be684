"""A hivemind client that sends what it is told, right or wrong, to a server's handlers, driven line by line.

Usage: python raw_client.py ADDR [ADDR …]    (full addresses, each with /p2p/ID)
First line out: {"peer_id": own id}. Then one answer per order, until stdin closes:
  {"op": "unary", "peer": id, "method": "rpc_forward", "request": REQUEST}  -> {"tensors": […]} | {"error": text, "kind": class}
  {"op": "info", "peer": id, "uid": uid}                  -> {"info": map} | {"error": …}
  {"op": "call", "peer": id, "name": "Any.name"}          -> {"tensors": []} | {"error": …}; an empty request to any handler name
  {"op": "raw", "peer": id, "name": "Any.name", "bytes": hex, "end": bool, "until": "answer" | "close", "timeout": s}
                                                          -> {"answer": hex, "done": bool}: what came until then, and whether
                                                             that was in time; "end" closes the own direction after the bytes
  {"op": "open", "stream": name, "peer": id, "method": "rpc_inference"}     -> {"opened": true} | {"error": …}
  {"op": "send", "stream": name, "request": REQUEST}      -> {"sent": true}
  {"op": "finish", "stream": name}                        -> {"sent": true}; the END record
  {"op": "recv", "stream": name, "timeout": s}            -> {"tensors": […]} | {"end": true} | {"timeout": true} | {"error": …}
REQUEST is {"uid": uid, "tensors": [TENSOR, …], "metadata": map or null}; in metadata, {"bytes": hex} stands for bytes.
TENSOR is {"shape": […], "dtype": "float32", "values": […] | "fill": x | "seed": n}. A map with "args": n in the metadata gets
Petals' own args_structure for n tensors in its place. Tensors come back as {"shape", "dtype", "values"}.
"""

import asyncio
import sys

import peer
import torch
from hivemind.compression import deserialize_torch_tensor, serialize_torch_tensor
from hivemind.p2p import P2P, PeerID
from hivemind.proto import runtime_pb2
from hivemind.utils import MSGPackSerializer
from petals.server.handler import TransformerConnectionHandler
from petals.utils.packaging import pack_args_kwargs


def tensor(order: dict) -> runtime_pb2.Tensor:
    dtype = getattr(torch, order.get("dtype", "float32"))
    shape = order["shape"]
    if "values" in order:
        made = torch.tensor(order["values"], dtype=dtype).reshape(shape)
    elif "seed" in order:
        made = torch.randn(shape, generator=torch.Generator().manual_seed(order["seed"])).to(dtype)
    else:
        made = torch.full(shape, order.get("fill", 0), dtype=dtype)
    return serialize_torch_tensor(made)


def metadata(value):
    """JSON as MessagePack has it."""
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return bytes.fromhex(value["bytes"])
    if isinstance(value, dict) and set(value) == {"tuple"}:
        return tuple(metadata(item) for item in value["tuple"])
    if isinstance(value, dict):
        return {key: metadata(item) for key, item in value.items()}
    if isinstance(value, list):
        return [metadata(item) for item in value]
    return value


def request(order: dict) -> runtime_pb2.ExpertRequest:
    fields = order.get("metadata")
    if fields is not None:
        fields = metadata(fields)
        if "args" in fields:
            count = fields.pop("args")
            fields["args_structure"] = pack_args_kwargs(*[torch.zeros(index + 1) for index in range(count)])[1]
        fields = MSGPackSerializer.dumps(fields)
    return runtime_pb2.ExpertRequest(
        uid=order.get("uid", ""), tensors=[tensor(item) for item in order.get("tensors", [])], metadata=fields or b""
    )


def answer(response: runtime_pb2.ExpertResponse) -> dict:
    tensors = []
    for item in response.tensors:
        made = deserialize_torch_tensor(item)
        tensors.append(
            {"shape": list(made.shape), "dtype": str(made.dtype), "values": made.to(torch.float64).flatten().tolist()}
        )
    return {"tensors": tensors}


class Streams:
    """Open streams by name: a queue of messages going out, an iterator of answers coming in."""

    def __init__(self, p2p: P2P):
        self.p2p = p2p
        self.outgoing: dict[str, asyncio.Queue] = {}
        self.incoming = {}
        self.pending: dict[str, asyncio.Task] = {}

    def stub(self, order: dict):
        return TransformerConnectionHandler.get_stub(self.p2p, PeerID.from_base58(order["peer"]))

    async def unary(self, order: dict) -> dict:
        call = getattr(self.stub(order), order["method"])
        return answer(await call(request(order["request"]), timeout=order.get("timeout", 60)))

    async def info(self, order: dict) -> dict:
        reply = await self.stub(order).rpc_info(runtime_pb2.ExpertUID(uid=order["uid"]), timeout=30)
        fields = MSGPackSerializer.loads(reply.serialized_info)
        return {"info": {key: value if isinstance(value, (int, str, bool)) else repr(value) for key, value in fields.items()}}

    async def call(self, order: dict) -> dict:
        peer_id, reply = PeerID.from_base58(order["peer"]), runtime_pb2.ExpertResponse
        return answer(await self.p2p.call_protobuf_handler(peer_id, order["name"], runtime_pb2.ExpertRequest(), reply))

    async def raw(self, order: dict) -> dict:
        """Bytes on a stream of that name, past every framing of hivemind."""
        peer_id = PeerID.from_base58(order["peer"])
        _info, reader, writer = await self.p2p._client.stream_open(peer_id, (order["name"],))
        read, done = b"", False
        try:
            writer.write(bytes.fromhex(order["bytes"]))
            await writer.drain()
            if order["end"]:
                writer.write_eof()
            async with asyncio.timeout(order["timeout"]):
                while part := await reader.read(65536):
                    read += part
                    if order["until"] == "answer":
                        break
                done = bool(read) or order["until"] == "close"
        except (ConnectionError, BrokenPipeError):
            done = order["until"] == "close"
        except TimeoutError:
            pass
        writer.close()
        return {"answer": read.hex(), "done": done}

    async def open(self, order: dict) -> dict:
        queue: asyncio.Queue = asyncio.Queue()

        async def messages():
            while (message := await queue.get()) is not None:
                yield message

        stream = await asyncio.wait_for(getattr(self.stub(order), order["method"])(messages()), 30)
        self.outgoing[order["stream"]] = queue
        self.incoming[order["stream"]] = stream.__aiter__()
        return {"opened": True}

    async def send(self, order: dict) -> dict:
        await self.outgoing[order["stream"]].put(request(order["request"]))
        return {"sent": True}

    async def finish(self, order: dict) -> dict:
        await self.outgoing[order["stream"]].put(None)
        return {"sent": True}

    async def recv(self, order: dict) -> dict:
        """A receive that timed out goes on at the next order: cancelling it would end the stream."""
        name = order["stream"]
        task = self.pending.pop(name, None) or asyncio.ensure_future(self.incoming[name].__anext__())
        done, _ = await asyncio.wait([task], timeout=order.get("timeout", 60))
        if not done:
            self.pending[name] = task
            return {"timeout": True}
        try:
            return answer(task.result())
        except StopAsyncIteration:
            return {"end": True}


async def main() -> None:
    torch.set_num_threads(1)
    p2p = await P2P.create(initial_peers=sys.argv[1:], use_relay=False, dht_mode="client", host_maddrs=[])
    streams = Streams(p2p)
    peer.say(peer_id=p2p.peer_id.to_base58())
    while (order := await asyncio.to_thread(peer.read)) is not None:
        try:
            peer.say(**await getattr(streams, order["op"])(order))
        except BaseException as error:  # the test judges
            peer.say(error=str(error), kind=type(error).__name__)
    await p2p.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
    peer.finish(0)

"""Answers of `/api/v1/swarm` that no swarm on one machine would give: large, empty, old, hostile, nonsensical."""

import random
import time

MARKUP = "<script>window.executed=1</script><img src=x onerror='window.executed=2'>"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
ADDR = "/ip4/203.0.113.7/tcp/31337/p2p/12D3KooWQ9uKdTY7Zk1ZjUqSxwJ4W4sDHbQK1kzB6sFSmXkcT4Ab"


def server(rng, start, end, **known):
    peer_id = "12D3KooW" + "".join(rng.choice(_ALPHABET) for _ in range(44))
    return {
        "peer_id": peer_id, "short_id": "…" + peer_id[-6:], "state": "online", "start": start, "end": end,
        "throughput": round(rng.uniform(200, 2500), 1), "network_rps": 8123.4, "forward_rps": rng.uniform(1e3, 9e3),
        "inference_rps": rng.uniform(20, 300), "public_name": None, "version": "sepal/0.1.0", "dtype": "bfloat16",
        "quant": "none", "adapters": [], "using_relay": False, "cache_tokens_left": rng.choice([4096, 16384, 65536]),
        "reachable": True, "reach_error": None, "checked": time.time() - rng.uniform(1, 15), "rtt": rng.uniform(0.001, 0.2),
        "pings": {}, "expires": time.time() + rng.uniform(60, 230), "signature": "valid", "problems": [], **known,
    }


def model(rng, name, n_blocks, servers, **known):
    """Coverage, holes, pings and route follow from the servers."""
    online = [one for one in servers if one["state"] == "online"]
    coverage = [sum(one["start"] <= block < one["end"] for one in online) for block in range(n_blocks)]
    for one in online:
        others = [other for other in online if other is not one and other["start"] <= one["end"] < other["end"]]
        one["pings"] = {other["peer_id"]: round(rng.uniform(0.002, 0.22), 4) for other in rng.sample(others, min(5, len(others)))}
    holes, hops, block = [], [], 0
    while block < n_blocks:
        here = [one for one in online if one["start"] <= block < one["end"]]
        end = max((one["end"] for one in here), default=block + 1)
        if here:
            hops.append({"peer_id": max(here, key=lambda one: one["end"])["peer_id"], "start": block, "end": end})
        else:
            while end < n_blocks and coverage[end] == 0:
                end += 1
            why = [{"peer_id": one["peer_id"], "why": f"serves {one['start']}:{one['end']}, which 2 others also serve"} for one in online[:2]]
            fill = f"sepal serve {name} --blocks {block}:{end} --initial-peers {ADDR}"
            holes.append({"start": block, "end": end, "fill": fill, "candidates": why})
        block = end
    route = None if holes else {"hops": hops, "tokens_per_second": rng.uniform(4, 20)}
    return {
        "name": name, "prefix": name.rsplit("/", 1)[-1].replace(".", "-") + "-hf", "n_blocks": n_blocks, "in_registry": True,
        "repository": f"https://huggingface.co/{name}", "state": "broken" if holes else "healthy", "coverage": coverage,
        "holes": holes, "best_route": route, "servers": servers, **known,
    }


def swarm(models, **known):
    bootstrap = {"addr": ADDR, "peer_id": ADDR.rsplit("/", 1)[-1], "ok": True, "rtt": 0.012, "error": None}
    dead = {**bootstrap, "addr": "/dns/gone.example.org/tcp/31338/p2p/Qm", "ok": False, "rtt": None, "error": "no answer within 5 s"}
    return {
        "version": "0.1.0", "peer_id": ADDR.rsplit("/", 1)[-1], "updated": time.time(), "refresh_seconds": 20, "join": [ADDR],
        "bootstraps": [bootstrap, dead], "totals": {}, "models": models,
        "contributors": [{"name": "https://uni.example.org/lab/", "url": "https://uni.example.org/lab/", "blocks": 32}], **known,
    }


def large(n_servers=24, n_blocks=80, seed=3):
    rng = random.Random(seed)
    servers = [server(rng, start, min(start + 20, n_blocks)) for start in range(0, n_blocks, 20)]
    while len(servers) < n_servers:
        length = rng.choice([8, 12, 20, 28, 40])
        start = rng.randrange(0, n_blocks - length + 1)
        state = rng.choice(["online"] * 10 + ["joining", "unreachable", "offline"])
        name = rng.choice([None, None, "Kurt", "Emmy Noether"])
        servers.append(server(rng, start, start + length, state=state, quant=rng.choice(["none", "nf4", "int8"]), public_name=name))
    return swarm([model(rng, "meta-llama/Meta-Llama-3.1-70B-Instruct", n_blocks, servers)])


def holed():
    rng = random.Random(2)
    unreachable = server(rng, 60, 70, state="unreachable", reachable=False, reach_error="failed to dial: connection refused")
    forged = server(rng, 30, 40, signature="forged", problems=["claims blocks 0:800 of a model of 80 blocks"])
    servers = [server(rng, 0, 40, public_name="Grace"), server(rng, 0, 30), forged, server(rng, 41, 62, signature="none", version="2.2.0.post1")]
    servers += [unreachable, server(rng, 70, 80, state="offline", reachable=None, checked=None)]
    return swarm([model(rng, "petals-team/StableBeluga2", 80, servers), model(rng, "org/small", 8, [server(rng, 0, 4), server(rng, 0, 4)])])


def healthy():
    rng = random.Random(1)
    relayed = server(rng, 0, 24, version="2.3.0.dev2", signature="none", quant="nf4", using_relay=True, adapters=["org/adapter"])
    servers = [server(rng, 0, 16, public_name="Ada"), server(rng, 12, 32, public_name="https://uni.example.org/lab/"), relayed]
    return swarm([model(rng, "meta-llama/Meta-Llama-3.1-8B-Instruct", 32, servers), model(rng, "org/small", 8, [server(rng, 0, 8)])])


def nothing():
    return swarm([], contributors=[], bootstraps=[], join=[])


def _places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


RUBBISH = [None, "", MARKUP, "\u202e\u0000\n" + "W" * 400, -1, 1e300, 0.5, True, [], {}, [None], {"__proto__": 1}, "__proto__", "javascript:alert(1)"]


def rubbish(n, seed=5):
    """`n` answers in which several places hold something else than they should."""
    rng = random.Random(seed)
    for _ in range(n):
        answer = rng.choice([healthy, holed])()
        places = [path for path in _places(answer) if path[0] != "updated" and path != ("models",)]
        for path in rng.sample(places, 12):
            inner = answer
            try:
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = rng.choice(RUBBISH)
            except (TypeError, KeyError, IndexError):
                continue  # a place inside one that was replaced
        yield answer

"""A Petals 2.2.0 client that goes through a swarm, beside plain transformers on the same model.

In:  {"model": NAME, "initial_peers": [ADDR, …], "scenarios": [name, …], "prompts": [[id, …], …], "max_new_tokens": n}
Out: {name: {"got": …, "want": …} | {"difference": largest absolute one} , …, "unclosed": [{"peer_id", "error"}, …]}; the
     test compares. `unclosed` are the sessions that could not say goodbye to their server.
"""

import peer
import reference
import torch
from petals import AutoDistributedModelForCausalLM
from petals.client.inference_session import _ServerInferenceSession

PREFIX_LENGTH = 3  # trained prompt vectors in front of the text, in the deep prompt scenario

UNCLOSED = []  # {"peer_id": …, "error": …}
_close = _ServerInferenceSession.close


def close(session) -> None:
    """As Petals closes, but an error is kept. Petals forgets it and leaves the session half closed: collected later on the
    thread of its event loop, the session waits there for that very thread, for ever. Petals' own servers cause it now and
    then, which end the stream while the client still writes (BrokenPipeError)."""
    try:
        _close(session)
    except Exception as error:
        UNCLOSED.append({"peer_id": session.span.peer_id.to_base58(), "error": repr(error)})
        session._outputs_stream = session._inputs_queue = None
        session.closed = True


_ServerInferenceSession.close = close


def connect(order: dict, **options):
    model = AutoDistributedModelForCausalLM.from_pretrained(
        order["model"], initial_peers=order["initial_peers"], max_retries=3, torch_dtype=torch.float32, **options
    )
    return model.eval()


def greedy(order: dict, remote, plain) -> dict:
    """Each prompt in a session of its own."""
    rows = [[prompt] for prompt in order["prompts"]]
    got = [reference.generate(remote, row, order["max_new_tokens"])[0] for row in rows]
    want = [reference.generate(plain, row, order["max_new_tokens"])[0] for row in rows]
    return {"got": got, "want": want}


def same_length(prompts: list[list[int]]) -> list[list[int]]:
    """Petals takes no padding, so the prompts of a batch are cut to the shortest."""
    shortest = min(map(len, prompts))
    return [prompt[:shortest] for prompt in prompts]


def batch(order: dict, remote, plain) -> dict:
    """All prompts at once."""
    rows = same_length(order["prompts"])
    return {
        "got": reference.generate(remote, rows, order["max_new_tokens"]),
        "want": reference.generate(plain, rows, order["max_new_tokens"]),
    }


def beam(order: dict, remote, plain) -> dict:
    """Beam search: the servers reorder their caches by hypo_ids at every step."""
    row = [order["prompts"][0]]
    return {
        "got": reference.generate(remote, row, order["max_new_tokens"], num_beams=3),
        "want": reference.generate(plain, row, order["max_new_tokens"], num_beams=3),
    }


def resumed(order: dict, remote, plain) -> dict:
    """Three calls of generate in one session, the last with more text from the user."""
    prompt, more = order["prompts"][0], order["prompts"][-1]
    n = order["max_new_tokens"]
    with torch.inference_mode(), remote.inference_session(max_length=len(prompt) + len(more) + 3 * n) as session:
        options = {"session": session, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": n}
        first = remote.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        second = remote.generate(None, **options)[0].tolist()
        third = remote.generate(torch.tensor([more]), **options)[0, len(more) :].tolist()
    want = reference.generate(plain, [prompt], 2 * n)[0]
    want += reference.generate(plain, [prompt + want + more], n)[0]
    return {"got": first + second + third, "want": want}


def deep_prompts(order: dict, _remote, plain) -> dict:
    """Vectors added to the input of every block at the first positions, as prompt tuning does."""
    torch.manual_seed(7)
    tuned = connect(order, tuning_mode="deep_ptune", pre_seq_len=PREFIX_LENGTH)
    with torch.no_grad():
        for parameter in (tuned.transformer.prompt_embeddings.weight, tuned.transformer.intermediate_prompt_embeddings.weight):
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    prompt = order["prompts"][0]
    got = reference.generate(tuned, [prompt], order["max_new_tokens"])[0]
    return {"got": got, "want": with_prompts(plain, tuned, prompt, order["max_new_tokens"])}


def goodbyes(order: dict, remote, _plain) -> dict:
    """Many short sessions, each of which must close without an error."""
    before = len(UNCLOSED)
    for _ in range(60):
        reference.generate(remote, [order["prompts"][0]], 2)
    return {"got": UNCLOSED[before:], "want": []}


def with_prompts(plain, tuned, prompt: list[int], n_tokens: int) -> list[int]:
    """The same in plain transformers: hooks add the vectors, and every token recomputes the whole text."""
    with torch.inference_mode():
        shallow, deep = tuned.transformer.get_prompt(1)

        def adder(vectors):
            def add(_layer, args, kwargs):
                hidden = args[0].clone()
                hidden[:, :PREFIX_LENGTH] += vectors
                return (hidden, *args[1:]), kwargs

            return add

        hooks = [
            layer.register_forward_pre_hook(adder(vectors), with_kwargs=True)
            for layer, vectors in zip(blocks_of(plain), deep)
        ]
        ids = list(prompt)
        for _ in range(n_tokens):
            text = plain.get_input_embeddings()(torch.tensor([ids]))
            logits = plain(inputs_embeds=torch.cat([shallow, text], 1), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        for hook in hooks:
            hook.remove()
    return ids[len(prompt) :]


def blocks_of(plain):
    return plain.model.layers if hasattr(plain, "model") else plain.transformer.h


def forward_difference(remote, plain, hidden: torch.Tensor) -> dict:
    """Largest difference between the swarm's blocks and the local ones, without a cache; and the size of all differences over
    that of all outputs. BLOOM has a norm between embeddings and blocks."""
    inputs, outputs = [], []
    layers = blocks_of(plain)
    hooks = [
        layers[0].register_forward_pre_hook(lambda _layer, args, kwargs: inputs.append((*args, *kwargs.values())[0]), with_kwargs=True),
        layers[-1].register_forward_hook(lambda _layer, _args, out: outputs.append(out[0])),
    ]
    with torch.inference_mode():
        plain(inputs_embeds=hidden, use_cache=False)
        got = remote.transformer.h(inputs[0])
    for hook in hooks:
        hook.remove()
    difference, relative = (got - outputs[0]).abs().max(), (got - outputs[0]).norm() / outputs[0].norm()
    return {"difference": float(difference), "relative": float(relative), "bytes": hidden.numel() * hidden.element_size()}


def hidden_states(plain, batch_size: int, n_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(0, plain.config.vocab_size, (batch_size, n_tokens), generator=generator)
    with torch.inference_mode():
        return plain.get_input_embeddings()(ids)


def forward(_order: dict, remote, plain) -> dict:
    """rpc_forward: a batch that Petals cuts into several unary requests sent side by side."""
    return forward_difference(remote, plain, hidden_states(plain, 6, 300))


def forward_stream(_order: dict, remote, plain) -> dict:
    """rpc_forward_stream: one row longer than 1 MiB, which Petals sends as a stream of parts."""
    return forward_difference(remote, plain, hidden_states(plain, 1, 4100))


SCENARIOS = {work.__name__: work for work in (greedy, batch, beam, resumed, deep_prompts, goodbyes, forward, forward_stream)}


def main(order: dict) -> dict:
    plain = reference.load(order["model"])
    remote = connect(order)
    results = {name: SCENARIOS[name](order, remote, plain) for name in order["scenarios"]}
    return {**results, "unclosed": UNCLOSED}


if __name__ == "__main__":
    peer.run_once(main)

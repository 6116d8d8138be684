"""A Petals client on several models of the same weights, each of which the servers keep in another format.

In:  {"model": the weights as they are, "models": [NAME, …], "initial_peers": [ADDR, …], "prompts": [[id, …]], "max_new_tokens": n}
Out: {"want": greedy ids of plain transformers, "got": {NAME: greedy ids}, "relative": {NAME: size of the differences of activations
after all blocks, over that of the activations}}
"""

import peer
import petals_client
import reference


def main(order: dict) -> dict:
    plain = reference.load(order["model"])
    prompt, n_tokens = order["prompts"][0], order["max_new_tokens"]
    hidden = petals_client.hidden_states(plain, 2, 40)
    got, relative = {}, {}
    for name in order["models"]:
        remote = petals_client.connect({**order, "model": name})
        got[name] = reference.generate(remote, [prompt], n_tokens)[0]
        relative[name] = petals_client.forward_difference(remote, plain, hidden)["relative"]
    return {"want": reference.generate(plain, [prompt], n_tokens)[0], "got": got, "relative": relative}


if __name__ == "__main__":
    peer.run_once(main)

"""A Petals 2.2.0 client that trains through a swarm, beside plain transformers (and peft) that train the same locally.

In:  {"model": NAME, "initial_peers": [ADDR, …], "scenarios": [name, …], "steps": n, "adapter": FOLDER | null}
Out: {name: {"got": [loss, …], "want": [loss, …]} | {"difference": …, "gradient_difference": …, …}, …}; the test compares.
"""

import pathlib

import peer
import peft
import reference
import torch
from petals import AutoDistributedModelForCausalLM, AutoDistributedModelForSequenceClassification
from petals_client import connect

PREFIX_LENGTH = 4
BATCH, TOKENS = 3, 9


def data(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids without the padding token, and a class for each row."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(1, vocab_size, (BATCH, TOKENS), generator=generator), torch.tensor([0, 1, 1])


def tuned(order: dict, kind, mode: str, **options):
    """A remote model whose trainable parameters start from the same numbers each time."""
    model = kind.from_pretrained(
        order["model"],
        initial_peers=order["initial_peers"],
        max_retries=3,
        torch_dtype=torch.float32,
        tuning_mode=mode,
        pre_seq_len=PREFIX_LENGTH,
        **options,
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(model):
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def trainable(model) -> list[torch.nn.Parameter]:
    """What Petals' examples give to the optimizer."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(parameters, loss_of, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def local_states(plain, model, ids: torch.Tensor) -> torch.Tensor:
    """What `model` computes remotely: its prompts in front of the text and, where they are deep, added in every block."""
    shallow, deep = model.transformer.get_prompt(len(ids))

    def adder(vectors):
        def add(_layer, args, kwargs):
            hidden = torch.cat([args[0][:, :PREFIX_LENGTH] + vectors, args[0][:, PREFIX_LENGTH:]], 1)
            return (hidden, *args[1:]), kwargs

        return add

    layers = zip(plain.model.layers, deep) if deep.numel() else ()
    hooks = [layer.register_forward_pre_hook(adder(vectors), with_kwargs=True) for layer, vectors in layers]
    text = plain.get_input_embeddings()(ids)
    states = plain.model(inputs_embeds=torch.cat([shallow, text], 1), use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states[:, PREFIX_LENGTH:]


def causal(order: dict, plain, mode: str) -> dict:
    """As in Petals' example on PersonaChat: the prompts alone are trained to predict the text."""
    ids, _ = data(plain.config.vocab_size)

    def remote_loss():
        return remote(input_ids=ids, labels=ids).loss

    def local_loss():
        logits = plain.lm_head(local_states(plain, remote, ids))
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    remote = tuned(order, AutoDistributedModelForCausalLM, mode)
    got = train(trainable(remote), remote_loss, order["steps"])
    remote = tuned(order, AutoDistributedModelForCausalLM, mode)
    return {"got": got, "want": train(trainable(remote), local_loss, order["steps"])}


def ptune(order: dict, plain) -> dict:
    return causal(order, plain, "ptune")


def deep_ptune(order: dict, plain) -> dict:
    return causal(order, plain, "deep_ptune")


def classification(order: dict, plain) -> dict:
    """As in Petals' example on SST-2: deep prompts and a classifier are trained together."""
    ids, labels = data(plain.config.vocab_size)

    def new():
        kind = AutoDistributedModelForSequenceClassification
        return tuned(order, kind, "deep_ptune", num_labels=2, pad_token_id=0)

    def remote_loss():
        return remote(input_ids=ids, labels=labels).loss

    def local_loss():
        logits = remote.score(local_states(plain, remote, ids)[:, -1])
        return torch.nn.functional.cross_entropy(logits, labels)

    remote = new()
    got = train(trainable(remote), remote_loss, order["steps"])
    remote = new()
    return {"got": got, "want": train(trainable(remote), local_loss, order["steps"])}


def adapter(order: dict, plain) -> dict:
    """Text, activations and gradients with a LoRA adapter, which the client asks for by name."""
    folder = pathlib.Path(order["adapter"])
    remote = connect(order, active_adapter=folder.name)
    prompt = [[1, 17, 42, 99, 200, 5, 250]]
    without = reference.generate(plain, prompt, 8)
    local = peft.PeftModel.from_pretrained(plain, folder).eval()
    result = {"without": without, "got": reference.generate(remote, prompt, 8)}
    # peft passes keywords only.
    with torch.inference_mode():
        want = local.generate(input_ids=torch.tensor(prompt), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    result["want"] = want[:, len(prompt[0]) :].tolist()

    torch.manual_seed(9)
    hidden, by_output = torch.randn(2, 12, plain.config.hidden_size), torch.randn(2, 12, plain.config.hidden_size)
    outputs, gradients = [], []
    for blocks in (remote.transformer.h, lambda x: through(local.base_model.model, x)):
        x = hidden.clone().requires_grad_()
        output = blocks(x)
        outputs.append(output.detach())
        gradients.extend(torch.autograd.grad(output, x, by_output))
    result["difference"] = float((outputs[0] - outputs[1]).abs().max())
    result["gradient_difference"] = float((gradients[0] - gradients[1]).abs().max())
    local.unload()
    return result


def through(model, hidden: torch.Tensor) -> torch.Tensor:
    """The blocks of a local model, without its final norm."""
    outputs = []
    hook = model.model.layers[-1].register_forward_hook(lambda _layer, _args, out: outputs.append(out[0]))
    model.model(inputs_embeds=hidden, use_cache=False)
    hook.remove()
    return outputs[0]


SCENARIOS = {work.__name__: work for work in (ptune, deep_ptune, classification, adapter)}


def main(order: dict) -> dict:
    plain = reference.load(order["model"]).requires_grad_(False)
    return {name: SCENARIOS[name](order, plain) for name in order["scenarios"]}


if __name__ == "__main__":
    peer.run_once(main)

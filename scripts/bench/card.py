"""The section `card`: blocks of Llama 70B's shape on an NVIDIA card, beside what its memory and cuBLAS give."""

from report import Goal, Section, Table

FORMATS = ("bfloat16", "float16", "q8_0", "q4_0", "q4_k", "nf4")
# Per cent of the limits, in bfloat16: of a token of one sequence, and of the longest prompt.
DECODE_GOAL, PREFILL_GOAL = 70, 50


def section(bench: object) -> Section:
    about = (
        "Blocks of noise, more than the card's caches hold. Every step goes through all of them, activations there and back included; "
        "times are medians, of one block. *Decode* is the bandwidth at which weights are read while each of 1 to 64 sequences gets a "
        "token, as a share of what a kernel reads that does nothing else. *Prefill* is a prompt, attention included, counting only the "
        "arithmetic of the matrices, as a share of the fastest product of thousands of tokens by cuBLAS in bfloat16. Both limits are "
        "measured before each format."
    )
    section = Section("card", "Blocks on an NVIDIA card", about)
    decode, prefill = Table([], []), Table([], [])
    for name in FORMATS:
        row = bench.card(name)
        sequences, prompts = (sorted(row[key], key=int) for key in ("decode_s", "prefill_s"))
        reads = [100 * row["decode_of_read"][n] for n in sequences]
        peaks = [100 * row["prefill_of_peak"][n] for n in prompts]
        of_weights = [f"{row['blocks']}", f"{row['block_bytes'] / 1e6:.1f}", f"{row['read_gb_s']:.0f}"]
        decode.rows.append([name, *of_weights, *cells(row["decode_s"], reads, sequences)])
        prefill.rows.append([name, f"{row['peak_tflop_s']:.1f}", *cells(row["prefill_s"], peaks, prompts)])
        if name == FORMATS[0]:
            what = f"{row['shape']}, {name}"
            section.goals = [
                Goal(f"{what}: decode of bandwidth", reads[0], "%", least=DECODE_GOAL, digits=0),
                Goal(f"{what}: prefill of cuBLAS, {prompts[-1]} tokens", peaks[-1], "%", least=PREFILL_GOAL, digits=0),
            ]
            on = f"{row['card']}, {row['shape']}"
            decode.headers = [on, "blocks", "MB", "card GB/s", *headers(sequences, "{} ms")]
            prefill.headers = [on, "cuBLAS TFLOP/s", *headers(prompts, "{} tokens, ms")]
    section.tables = [decode, prefill]
    return section


def headers(numbers: list[str], text: str) -> list[str]:
    return [header for n in numbers for header in (text.format(n), "%")]


def cells(seconds: dict[str, float], shares: list[float], numbers: list[str]) -> list[str]:
    return [cell for n, share in zip(numbers, shares) for cell in (f"{1e3 * seconds[n]:.3f}", f"{share:.0f}")]

"""How fast does ours sample, against `transformers.generate` on the same weights?

LlamaForCausalLM and ours hold one set of weights (minimind2, 512x8 and 64x2, vocabulary 6400) and continue the same
prompts by the likeliest token; the texts must be the same. Both are run in turns, so that a busy moment hits both.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.simplefilter("ignore")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import torch  # noqa: E402
import transformers  # noqa: E402

from minimind.config import ModelConfig  # noqa: E402
from minimind.model import MiniMind  # noqa: E402
from minimind.sampling import Sampling, generate_all  # noqa: E402

SIZES = ((512, 8), (64, 2))
BATCHES = (1, 8)
VOCAB = 6400


def pair(hidden_size: int, layers: int, device: str) -> tuple[MiniMind, transformers.LlamaForCausalLM]:
    torch.manual_seed(7)
    config = ModelConfig.for_arch("minimind2", hidden_size=hidden_size, num_hidden_layers=layers, vocab_size=VOCAB)
    ours = MiniMind(config).eval()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours.to(device), theirs.to(device)


def measure(hidden_size: int, layers: int, batch: int, options: argparse.Namespace) -> dict:
    ours, theirs = pair(hidden_size, layers, options.device)
    torch.manual_seed(1)
    prompts = torch.randint(3, VOCAB, (batch, options.prompt_tokens), device=options.device)
    sampling = Sampling(max_new_tokens=options.new_tokens, stop_ids=frozenset())

    def run_ours():
        return generate_all(ours, prompts.tolist(), sampling)

    def run_theirs():
        with torch.inference_mode():
            found = theirs.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=options.new_tokens, do_sample=False
            )
        return found[:, options.prompt_tokens :].tolist()

    same = run_ours() == run_theirs()  # also warms both up
    taken: dict[str, list[float]] = {"transformers": [], "ours": []}
    for _ in range(options.repeats):
        for name, run in (("transformers", run_theirs), ("ours", run_ours)):
            start = time.perf_counter()
            run()
            taken[name].append(batch * options.new_tokens / (time.perf_counter() - start))
    rates = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "model": f"{hidden_size}x{layers}",
        "batch": batch,
        "transformers_tokens_per_s": rates["transformers"],
        "ours_tokens_per_s": rates["ours"],
        "ratio": rates["ours"] / rates["transformers"],
        "same_text": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is run")
    parser.add_argument("--prompt_tokens", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new_tokens", type=int, default=128, help="tokens made after each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print("model   batch   transformers tokens/s   ours tokens/s   ratio   same text")
    for hidden_size, layers in SIZES:
        for batch in BATCHES:
            row = measure(hidden_size, layers, batch, options)
            rows.append(row)
            if not options.json:
                print(
                    f"{row['model']:<7} {batch:>5} {row['transformers_tokens_per_s']:>23.0f}"
                    f" {row['ours_tokens_per_s']:>15.0f} {row['ratio']:>7.2f}   {'yes' if row['same_text'] else 'NO'}"
                )
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "device": options.device, "cases": rows}))
    return 0 if all(row["same_text"] and row["ratio"] >= 1 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

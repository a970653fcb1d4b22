"""Every option, once: frozen dataclasses whose annotated fields become the command line; sizes, stages, defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from minimind.catalog import StageInfo, weights_file
from minimind.rundir import RunError

Schedule = Literal["minimind2", "minimind3", "cosine", "constant"]
Arch = Literal["minimind2", "minimind3"]
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linears of a block that can carry an adapter."""


class UsageError(RunError):
    """A command line that no run can have."""


class CannotTrain(RunError):
    """What is certain to fail, known before anything is started."""


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Rotary frequencies stretched at inference for texts longer than those trained on (YaRN, Peng et al. 2023).

    The defaults are MiniMind's: cosines and sines are not scaled (``attention_factor`` 1; the paper would take
    0.1 ln(factor) + 1), and the stretched frequencies hold at every position.
    """

    factor: float = 16.0
    original_length: int = 2048  # tokens
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of one decoder. ``for_arch`` fills in what a generation derives from its hidden size."""

    arch: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768
    qk_norm: bool = False
    num_experts: int = 0  # 0: dense
    num_shared_experts: int = 0
    experts_per_token: int = 0
    yarn: Yarn | None = None  # None: the frequencies trained with

    @classmethod
    def for_arch(
        cls, arch: str, *, hidden_size: int, num_hidden_layers: int, vocab_size: int, use_moe: bool = False
    ) -> ModelConfig:
        """The generation's proportions: 8 heads of hidden/8, and what the table ``GENERATIONS`` says.

        Raises:
            RunError: when the hidden size cannot be divided so.
        """
        heads = 8
        generation = GENERATIONS[arch]
        if hidden_size % (2 * heads):
            raise UsageError(
                f"hidden_size {hidden_size} does not fit {heads} heads",
                why="each head needs an even width for its rotary halves",
                remedy=f"use a multiple of {2 * heads}, e.g. {max(1, hidden_size // (2 * heads)) * 2 * heads}",
            )
        return cls(
            arch=arch,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=generation.num_key_value_heads,
            head_dim=hidden_size // heads,
            intermediate_size=generation.intermediate_size(hidden_size),
            rms_norm_eps=generation.rms_norm_eps,
            qk_norm=generation.qk_norm,
            num_experts=4 if use_moe else 0,
            num_shared_experts=generation.num_shared_experts if use_moe else 0,
            experts_per_token=generation.experts_per_token if use_moe else 0,
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What sets one generation's decoders apart."""

    num_key_value_heads: int
    rms_norm_eps: float
    qk_norm: bool
    num_shared_experts: int
    experts_per_token: int
    intermediate_size: Callable[[int], int]


GENERATIONS: dict[str, Generation] = {
    "minimind2": Generation(
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        qk_norm=False,
        num_shared_experts=1,
        experts_per_token=2,
        intermediate_size=lambda hidden: -(-int(hidden * 8 / 3) // 64) * 64,
    ),
    "minimind3": Generation(
        num_key_value_heads=4,
        rms_norm_eps=1e-6,
        qk_norm=True,
        num_shared_experts=0,
        experts_per_token=1,
        intermediate_size=lambda hidden: math.ceil(hidden * math.pi / 64) * 64,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every training stage takes. Names are the original's; a dash is accepted for every underscore."""

    epochs: Annotated[int, "passes over the data"] = 1
    batch_size: Annotated[int, "samples (dpo: pairs) in a micro-batch of one rank"] = 32
    accumulation_steps: Annotated[int, "micro-batches of each rank in one optimizer step"] = 1
    learning_rate: Annotated[float, "peak learning rate; the schedule is a function of the micro-batch"] = 5e-4
    lr_schedule: Annotated[Schedule, "shape of the learning rate over the run"] = "minimind2"
    grad_clip: Annotated[float, "largest gradient norm; 0 does not clip"] = 1.0
    max_seq_len: Annotated[int, "tokens of one text; longer ones are cut on the right, and counted"] = 512
    max_steps: Annotated[int | None, "stop after this many optimizer steps (the schedule stays that of all epochs)"] = (
        None
    )
    max_tokens_per_batch: Annotated[
        int | Literal["auto"] | None,
        "split a micro-batch into passes of at most this many tokens; auto: as many as fill the memory of a GPU; "
        "default: on a CPU what keeps memory small, on a GPU no bound",
    ] = None
    pack: Annotated[bool, "concatenate texts without padding; --no-pack pads to max_seq_len as the original does"] = (
        True
    )
    skip_bad_lines: Annotated[int, "lines of the data that may be bad before the run refuses it"] = 0
    random_system: Annotated[
        float, "share of the conversations without a system turn that get a random one (minimind3 trained with 0.2)"
    ] = 0.0
    drop_empty_think: Annotated[
        float, "share of the conversations whose empty think blocks are left out (minimind3 trained with 0.8)"
    ] = 0.0
    seed: Annotated[int, "decides initial weights and the order of samples"] = 42
    deterministic: Annotated[bool, "refuse kernels whose result may differ between two runs"] = False
    device: Annotated[str, "auto, cpu, cuda or cuda:N"] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        "autocast type on a GPU (one without bfloat16 takes float16); a CPU computes in float32",
    ] = "bfloat16"
    num_workers: Annotated[int, "accepted for old command lines; batches are read from memory-mapped shards"] = 1
    use_compile: Annotated[bool, "torch.compile each block"] = False
    parallel: Annotated[
        Literal["ddp", "fsdp"], "ranks keep whole copies of the model, or a shard each (for models too large for a GPU)"
    ] = "ddp"
    arch: Annotated[Arch, "generation of the model"] = "minimind2"
    preset: Annotated[
        str | None, "sizes by name: small, base or moe (minimind3: base, moe); flags of single sizes win over it"
    ] = None
    hidden_size: Annotated[int, "width of the model; 512 is the 26M preset, 768 with 16 layers the 104M one"] = 512
    num_hidden_layers: Annotated[int, "decoder blocks"] = 8
    use_moe: Annotated[bool, "mixture of four experts instead of one feed-forward"] = False
    dropout: Annotated[float, "share of activations dropped; seed, epoch and sample decide which"] = 0.0
    data_path: Annotated[Path | None, "JSONL file; default: the stage's file in dataset/"] = None
    tokenizer: Annotated[Path | None, "folder with tokenizer.json; default: tokenizer/ in save_dir"] = None
    any_tokenizer: Annotated[bool, "go on although the weights were trained with another tokenizer"] = False
    save_dir: Annotated[Path, "where weights get the original's names"] = Path("out")
    from_weight: Annotated[str | None, "name in save_dir or path of the weights to start from; none: random"] = None
    from_resume: Annotated[
        bool | None, "1 requires a checkpoint, 0 refuses to go on from one; default: go on if any"
    ] = None
    run_dir: Annotated[Path | None, "run directory; default: a new one in runs/ beside save_dir"] = None
    save_interval: Annotated[int, "optimizer steps between checkpoints; the last step is always saved"] = 100
    keep_checkpoints: Annotated[int, "newest checkpoints kept in the run directory, beside the best one"] = 2
    log_interval: Annotated[int, "optimizer steps between lines on the console (metrics.jsonl has every step)"] = 100
    profile: Annotated[
        bool, "write a profiler's trace of 5 steps, after the first 3, to profile/ in the run directory (rank 0)"
    ] = False
    hang_timeout: Annotated[
        float,
        "seconds a rank may make no progress before the run ends as hung (first step, saves: 6 times); 0: no limit",
    ] = 600.0
    max_bad_steps: Annotated[int, "steps in a row with a gradient that is not finite before the run fails"] = 3
    use_wandb: Annotated[bool, "also log to Weights & Biases (rank 0)"] = False
    wandb_project: Annotated[str, "project name there"] = "MiniMind"

    @property
    def balanced_by_pass(self) -> bool:
        """Whether the loss depends on how a step is cut into passes: minimind3 balances a mixture over each of them."""
        return self.use_moe and self.arch == "minimind3"


@dataclass(frozen=True, kw_only=True)
class DpoConfig(TrainConfig):
    """Direct preference optimisation."""

    beta: Annotated[float, "strength of the pull towards the reference model"] = 0.1
    length_normalised: Annotated[
        bool, "average log-probabilities over answer tokens (minimind2) instead of summing"
    ] = True


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TrainConfig):
    """Low-rank adapters on a frozen model."""

    lora_name: Annotated[str, "name of the adapter: lora/<name>_<hidden>.pth"] = "lora_identity"
    lora_rank: Annotated[int, "rank of each adapter"] = 8
    lora_targets: Annotated[
        str,
        "linears that get one: square (q_proj and o_proj, as in the original), all, or names q_proj,v_proj,gate_proj",
    ] = "square"
    from_lora: Annotated[Path | None, "adapter to start from"] = None


@dataclass(frozen=True, kw_only=True)
class ReasonConfig(TrainConfig):
    """Fine-tuning on answers that think aloud: the tags' tokens weigh ten times as much."""

    tag_match: Annotated[
        Literal["whole", "pieces"], "whole tags inside answers, or any token of a tag anywhere as the original does"
    ] = "whole"


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TrainConfig):
    """Learning a teacher's distribution over answer tokens."""

    alpha: Annotated[float, "share of the cross-entropy; the rest is the divergence from the teacher"] = 0.0
    temperature: Annotated[float, "softens both distributions"] = 1.0
    teacher_weight: Annotated[str, "name in save_dir or path of the teacher's weights"] = "full_sft"
    teacher_hidden_size: Annotated[int, "width of a teacher given by name"] = 768


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Training a tokenizer from text."""

    data_path: Annotated[Path | None, "JSONL file with text or conversations; default: dataset/pretrain_hq.jsonl"] = (
        None
    )
    save_dir: Annotated[Path, "the tokenizer is linked into tokenizer/ here"] = Path("out")
    vocab_size: Annotated[int, "entries, special tokens included"] = 6400
    skip_bad_lines: Annotated[int, "lines of the data that may be bad before the run refuses it"] = 0
    run_dir: Annotated[Path | None, "run directory; default: a new one in runs/ beside save_dir"] = None


CONFIGS: dict[str, type[TrainConfig] | type[TokenizerConfig]] = {
    "tokenizer": TokenizerConfig,
    "pretrain": TrainConfig,
    "full_sft": TrainConfig,
    "dpo": DpoConfig,
    "lora": LoraConfig,
    "reason": ReasonConfig,
    "distillation": DistillationConfig,
}


def to_plain(config: Any) -> dict[str, Any]:
    """The config as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def data_file(config: Any, info: StageInfo) -> Path:
    """The JSONL file that a stage reads."""
    default = info.default_data.format(lora_name=getattr(config, "lora_name", ""))
    return Path(config.data_path or Path("dataset") / default)


def tokenizer_folder(config: TrainConfig) -> Path:
    """The folder of the tokenizer that a stage uses."""
    return config.tokenizer or config.save_dir / "tokenizer"


def starting_weights(config: TrainConfig, info: StageInfo) -> Path | None:
    """The file that a stage starts from; None for random weights."""
    name = config.from_weight or info.starts_from
    if name is None or name == "none":
        return None
    if "/" in name or name.endswith(".pth"):
        return Path(name)
    return config.save_dir / weights_file(name, hidden_size=config.hidden_size, use_moe=config.use_moe)

"""The fields of a configuration as frozen dataclasses, with their documentation."""

import dataclasses
from typing import Any, Literal


def described(default: Any, text: str, *, least: int = 0, kind: str | None = None) -> Any:
    """A dataclass field with its documentation, which `--help` prints.

    Args:
      default: the default value.
      text: the documentation.
      least: the smallest value that is allowed, for numbers.
      kind: the kind of plug-in that the field names (`plugins`), such as "update"; None if the
        field names no plug-in.
    """
    metadata = {"help": text, "least": least, "kind": kind}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network: sizes and architecture."""

    architecture: str = described(
        "rwkv", "equations to use (see int_lm/model)", kind="architecture"
    )
    width: int = described(64, "D, channels of the residual stream and of the state", least=1)
    layers: int = described(2, "L, residual blocks", least=1)
    ffn_multiple: int = described(4, "F / D, feed-forward width as a multiple of D", least=1)
    direct: tuple[int, ...] = described(
        (), "lengths k of context tables, each from a hash of the last k tokens to the logits"
    )
    words: tuple[int, ...] = described(
        (),
        "numbers n of words of further such tables: the hash is of the last n words; a word is a "
        "run of letters, the last one that which is being written (bytes only)",
    )
    direct_bits: int = described(16, "rows of each such table: 2^direct_bits (V bytes each)")
    cache: tuple[int, ...] = described(
        (),
        "lengths k of contexts whose earlier occurrences in the same document are looked up, in a "
        "part of the state",
    )
    cache_bits: int = described(
        10, "rows of the state for each such length: 2^cache_bits (12 bytes each, of every member)"
    )


@dataclasses.dataclass(frozen=True)
class EsConfig:
    """Evolution strategy: population, perturbation, fitness, votes and update."""

    population: int = described(512, "P, members per step; 2i and 2i+1 are a pair (even)", least=2)
    segment_length: int = described(16, "T, tokens each member reads per step", least=1)
    members_per_stream: int = described(
        2, "members that read one stream (even); 1 if nothing is perturbed (local, deep)", least=1
    )
    rank: int = described(1, "R, rank of a matrix perturbation A B^T", least=1)
    sigma_shift: int = described(3, "perturbation scale sigma = 2^-sigma_shift (1.0 = 16 in q4)")
    noise: Literal["rademacher", "gaussian"] = described(
        "rademacher", "distribution of A and B: +-16, or int8 with standard deviation 16"
    )
    objective: str = described(
        "log_likelihood", "what members do with a batch, and the score of it", kind="objective"
    )
    votes: str = described(
        "unit",
        "what a pair's perturbation is multiplied with. eggroll: its fitness over the segment (any "
        "objective will do); trace: its log-likelihood difference token by token; unit: what each "
        "unit contributed to that, by node perturbation (needs readout exact); local: the same of "
        "every unit moved alone, with no perturbation of weights (needs members_per_stream 1; 2 "
        "where norm weights are perturbed); deep: local, with credit from later layers and from "
        "the next token, which is not forward-only (docs/method.md)",
        kind="estimator",
    )
    readout: Literal["perturbed", "exact"] = described(
        "exact", "how the readout learns: as votes says, or from its exact gradient"
    )
    fitness: Literal["sign", "linear", "rank", "standard"] = described(
        "sign",
        "votes eggroll: of a pair's score difference its sign, or clipped linear in 15 levels; of "
        "rewards (int_lm.tune) also the difference of ranks within the prompt, or the difference "
        "in standard deviations of the prompt",
    )
    update: str = described(
        "carry",
        "threshold: weights whose |vote| passes a threshold move by one unit (1/16); carry: votes "
        "move weights by learning_rate, and what is less than a unit is kept for later steps; "
        "adaptive: carry by the ratio of the vote's running mean to its root mean square (Adam)",
        kind="update",
    )
    alpha: float = described(
        1.0,
        "update threshold: share of weights, at most 1, that would move if votes were pure noise",
    )
    alpha_halflife: float = described(67.0, "steps after which schedule inverse has halved alpha")
    learning_rate: float = described(
        0.5, "update carry: units (1/16) a weight moves by in a step; adaptive: times the ratio"
    )
    learning_rate_halflife: float = described(
        200.0, "steps after which schedule inverse has halved learning_rate"
    )
    warmup: int = described(0, "first steps, in which learning_rate rises evenly from 0; 0: none")
    beta1: float = described(0.8, "update adaptive: decay of the running mean of votes")
    beta2: float = described(0.9, "update adaptive: decay of the running mean of their squares")
    direct_rate: float = described(
        12.0, "units (1/16 bit) that a row of a context table moves by when it is first read"
    )
    direct_dropout: float = described(
        0.0,
        "share of the streams that are read, in training, without context tables of words or of "
        "more than direct_dropout_above tokens, which know a text by heart",
    )
    direct_dropout_above: int = described(3, "tokens of the longest contexts never left out")
    pooled: bool = described(
        False,
        "network and context tables learn apart; trust in each is learnt from documents that are "
        "held back, one in 16: for text that is read more than a few times",
    )
    decay: float = described(
        0.0,
        "weight decay: share of itself by which a weight of the network, other than of its norms, "
        "shrinks in a step, times the decay of schedule",
    )
    anchor: float = described(
        0.0,
        "pull towards the weights of run.init_from: share of its distance from them that a weight "
        "of the network goes back in a step, times the decay of schedule",
    )
    schedule: Literal[
        "constant", "linear", "cosine", "inverse", "inverse_sqrt", "inverse_sqrt_to_zero"
    ] = described(
        "inverse_sqrt_to_zero",
        "decay of alpha and learning_rate: none, to 0 at run.steps (linear, cosine), with "
        "h = step / halflife as 1 / (1 + h) or 1 / sqrt(1 + h), or that times linear",
    )
    chunk: int = described(
        0,
        "members that a device evaluates at once, to bound memory (0: about 512 on CPUs, on others "
        "all of a device's; the bits are the same for any)",
    )

    @property
    def streams(self) -> int:
        """S, token streams: each is read by `members_per_stream` members."""
        return self.population // self.members_per_stream


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A source of text."""

    source: Literal["stdlib", "text", "json", "parquet", "hub"] = described(
        "stdlib",
        "stdlib: the Python standard library's own sources; text, json (lines or an array; .gz, "
        ".zst, .bz2, .xz too), parquet: the files of data.path; hub: the dataset "
        "of the Hugging Face hub it names",
    )
    path: tuple[str, ...] = described(
        (),
        "files, directories or (json, parquet) patterns; where no source is set, names such as "
        "x.jsonl, x.json.gz or x.parquet imply theirs, any other name implies text",
    )
    field: str = described(
        "text",
        "json, parquet, hub: the field that holds the text; meta.text is the field text of meta",
    )
    skip_damaged: int = described(
        0,
        "json, parquet: damaged records, or records whose field holds no text, that are left out "
        "and counted; one more ends the command (0: the first one does)",
    )
    subset: str = described("", "hub: name of the dataset's configuration, if it has several")
    split: str = described("train", "hub: split to read")
    revision: str = described("", "hub: commit to read; without it prepare asks for the newest")


@dataclasses.dataclass(frozen=True)
class MixtureConfig(SourceConfig):
    """One source of several, with its share."""

    name: str = described("", "of the source in reports")
    weight: float = described(
        1.0,
        "share of the tokens read, in proportion to the other weights; 0: not, or no longer, read, "
        "and still evaluated",
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Text: where it comes from, how it is cut into tokens, and what is held out."""

    mixture: tuple[MixtureConfig, ...] = described(
        (),
        "several sources in place of one, each a mapping {name, weight, source, path, ...}; "
        "weights may change when a run is resumed",
    )
    tokenizer: str = described(
        "bytes",
        "bytes: one token per byte, 0 between texts; or a directory that tokenization.train wrote, "
        "or a SentencePiece .model file",
    )
    holdout: float = described(0.1, "share of the documents held out, chosen by their hash")
    heldout_bytes: int = described(
        1 << 24, "held-out text evaluated at the end: at most this many bytes of a source (0: all)"
    )
    document_bytes: int = described(
        16384, "longer text files are cut into documents of this size at line ends (0: never)"
    )
    shards: str = described("shards", "directory of the token shards that training reads")
    shard_bytes: int = described(1 << 26, "text of a shard, in bytes", least=1)
    window_bytes: int = described(
        0,
        "for a source larger than the disk: shards held at any time, in bytes, while those to come "
        "are prepared beside training (0: all are prepared first)",
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run: directory, length, intervals and seed."""

    dir: str = described("runs/default", "run directory; a checkpoint found in it is resumed")
    steps: int = described(1000, "stop after this many steps")
    seconds: float = described(0.0, "stop after this many seconds of training (0: no limit)")
    seed: int = described(0, "seed of initial weights, perturbations and samples")
    init_from: str = described(
        "",
        "run directory or export whose weights a new run starts from, with its own text and rates "
        "(empty: random weights from the seed)",
    )
    init_hash: str = described(
        "", "hash that the weights of init_from must have; a run writes it into its config.yaml"
    )
    log_every: int = described(10, "steps between lines of the log", least=1)
    eval_every: int = described(100, "steps between evaluations on held-out text (0: only at end)")
    eval_bytes: int = described(131072, "held-out bytes used while training (0: all)")
    checkpoint_every: int = described(100, "steps between checkpoints (0: only at the end)")
    saving_signals: tuple[str, ...] = described(
        (),
        "of the signals HUP, USR1 and USR2 those at which the run saves and goes on; at the others "
        "it saves and stops",
    )
    keep: int = described(2, "newest checkpoints kept, beside the best one", least=1)
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = described(
        (),
        "trackers that get the rows of metrics.jsonl, on this machine and without an account; each "
        "needs the extra of its name: pip install 'int-lm[tensorboard]'",
    )
    sample_prompt: str = described("", "prompt of the sample shown at every evaluation")
    sample_tokens: int = described(160, "tokens of that sample (0: no sample)")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward of what members write: used by int_lm.tune alone."""

    name: str = described(
        "", "a shipped task, or package.module:function, called with prompt, completion and facts"
    )
    prompts: str = described(
        "", 'JSON lines {"prompt": ...} for a function of your own; further keys are its facts'
    )
    holdout: float = described(0.1, "share of the different prompts of that file held out")
    heldout_prompts: int = described(
        200, "held-out prompts answered at every evaluation, greedily, at most", least=1
    )
    stop: str = described(
        "\n", "text that ends a completion, beside the end of a text; a task has its own"
    )
    solved: float = described(1.0, "least reward that counts as solved; a task has its own")
    tokens: int = described(32, "tokens of a completion at most", least=1)
    prompt_tokens: int = described(512, "tokens of a prompt at most; more are refused", least=1)
    temperature: float = described(
        0.0, "of what members write; 0: always the likeliest token (the perturbations explore)"
    )
    pass_at: int = described(
        1,
        "completions that a member writes of its prompt, of which the best counts: pass@k (above 1 "
        "with a temperature)",
        least=1,
    )
    seconds: float = described(
        60.0, "seconds that the reward of one completion may take (0: no limit)"
    )
    processes: int = described(
        0,
        "processes that compute rewards (0: one for a function of your own, none for a task)",
    )


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Reinforcement learning in an environment: used by int_lm.control alone."""

    env: str = described(
        "",
        "CartPole, Pendulum or Acrobot, gymnax:NAME, jumanji:NAME or brax:NAME (pip install "
        "'int-lm[rl]'), or package.module:NAME",
    )
    episodes: int = described(4, "episodes that a member plays in a step", least=1)
    heldout_episodes: int = described(
        64, "episodes that the unperturbed policy plays at every evaluation", least=1
    )
    max_steps: int = described(0, "steps after which an episode ends (0: those of the environment)")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Devices and processes: where a run is computed. Nothing here changes a bit of it."""

    coordinator: str = described(
        "auto",
        "host:port of process 0, where all processes of the run meet; auto: as SLURM or Open MPI "
        "say, and otherwise this process alone; none: this process alone",
    )
    processes: int = described(0, "number of processes (0: as SLURM or Open MPI say)")
    process_id: int = described(
        -1, "which of them this one is, from 0 (-1: as SLURM or Open MPI say)", least=-1
    )
    devices: int = described(
        0, "devices to use of each process (0: all, or as many as can share the streams evenly)"
    )
    update: Literal["auto", "replicated", "sharded"] = described(
        "auto",
        "replicated: every device sums all votes and moves all weights; sharded: each its part, "
        "and int8 weights are gathered; auto: sharded from 2^24 weights on",
    )
    timeout: float = described(
        120.0,
        "seconds after which a process that waits for the others in a step gives up and ends, so "
        "that the run can be started again (outside of steps: twice as long, and a minute)",
        least=1,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    es: EsConfig = dataclasses.field(default_factory=EsConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    control: ControlConfig = dataclasses.field(default_factory=ControlConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

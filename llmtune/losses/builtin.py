"""The losses and advantages that ship with llmtune."""

from llmtune.losses.info import register_advantage, register_loss

PAIRS = "llmtune.losses.preference:"
UNPAIRED = "llmtune.losses.unpaired:"
READS = {
    "sigmoid": ("beta", "label_smoothing"),
    "robust": ("beta", "label_smoothing"),
    "exo_pair": ("beta", "label_smoothing"),
    "discopop": ("beta", "tau"),
    "sft": (),
    "cpo": ("beta", "label_smoothing", "alpha"),
    "simpo": ("beta", "label_smoothing", "gamma", "alpha"),
    "orpo": ("beta", "alpha"),
}
"""Of losses over pairs; the others read beta alone."""
PER_TOKEN = ("ipo", "sigmoid_norm", "simpo", "orpo")

for _key, _description, _paper, _options in (
    ("sigmoid", "DPO; with --label_smoothing cDPO.", "2305.18290", {}),
    ("robust", "DPO that expects a share --label_smoothing of swapped pairs.", "2403.00409", {}),
    ("hinge", "Hinge loss on the scaled log-ratios (SLiC).", "2305.10425", {}),
    ("ipo", "Squared distance of log-ratios per token from 1 / (2 beta).", "2310.12036", {}),
    ("sigmoid_norm", "DPO on log-ratios per token, as in Tulu 3.", "2411.15124", {"beta": 5.0}),
    ("exo_pair", "KL to the smoothed labels.", "2402.00856", {"label_smoothing": 1e-3}),
    ("nca_pair", "Noise-contrastive: raises the chosen response's own probability.", "2402.05369", {}),
    ("sppo_hard", "Self-play: squared distance of each log-ratio from its target.", "2405.00675", {}),
    ("apo_zero", "Anchored: chosen up, rejected down.", "2408.06266", {}),
    ("apo_down", "Anchored: both down, rejected more.", "2408.06266", {}),
    ("discopop", "DPO and exponential loss, mixed by the log-ratio.", "2406.08414", {}),
):
    register_loss(
        _key,
        function=PAIRS + _key,
        per_token=_key in PER_TOKEN,
        reads=READS.get(_key, ("beta",)),
        defaults=_options,
        above={"label_smoothing": 0.0} if _key == "exo_pair" else {},
        below={"label_smoothing": 0.5} if _key == "robust" else {},
        description=_description,
        source=f"https://arxiv.org/abs/{_paper}",
    )

for _key, _description, _paper, _options in (
    ("sft", "Cross entropy of the chosen responses: a term beside others (RPO).", "2404.19733", {}),
    ("cpo", "DPO without a reference, with cross entropy of the chosen responses.", "2401.08417", {"alpha": 1.0}),
    ("simpo", "Log-probabilities per token, a margin, no reference.", "2405.14734", {"beta": 2.0, "gamma": 1.0}),
    ("orpo", "Odds ratio beside cross entropy, no reference.", "2403.07691", {"alpha": 1.0}),
):
    register_loss(
        _key,
        function=PAIRS + _key,
        needs_reference=False,
        per_token=_key in PER_TOKEN,
        reads=READS.get(_key, ("beta",)),
        defaults=_options,
        description=_description,
        source=f"https://arxiv.org/abs/{_paper}",
    )

register_loss(
    "kto",
    function=UNPAIRED + "kto",
    over="labels",
    reads=("beta", "desirable_weight", "undesirable_weight"),
    description="Kahneman-Tversky: single responses, good or bad.",
    source="https://arxiv.org/abs/2402.01306",
)
register_loss(
    "apo_zero_unpaired",
    function=UNPAIRED + "apo_zero_unpaired",
    over="labels",
    reads=("beta", "desirable_weight", "undesirable_weight"),
    description="Anchored, on single responses.",
    source="https://arxiv.org/abs/2408.06266",
)
register_loss(
    "bradley_terry",
    function=UNPAIRED + "bradley_terry",
    over="scores",
    reads=("centring",),
    needs_reference=False,
    description="Reward model: the chosen response scores higher, by a margin where the data has one.",
    source="https://arxiv.org/abs/2307.09288",
)

POLICY = "llmtune.losses.policy:"
CLIPPING = ("beta", "epsilon", "epsilon_high")
POLICY_READS = {"cispo": ("beta", "epsilon_high"), "dr_grpo": (*CLIPPING, "max_tokens")}

for _key, _function, _advantage, _description, _paper, _options in (
    ("grpo", "grpo", "group", "Clipped ratios, the mean over responses of their means.", "2402.03300", {"beta": 0.0}),
    (
        "dr_grpo", "dr_grpo", "group_mean", "GRPO without its biases by length and by difficulty.",
        "2503.20783", {"beta": 0.0},
    ),
    (
        "dapo", "dapo", "group", "GRPO with the mean over all tokens, and more room above.",
        "2503.14476", {"beta": 0.0, "epsilon_high": 0.28},
    ),
    (
        "gspo", "gspo", "group", "GRPO with one ratio for each response.",
        "2507.18071", {"beta": 0.0, "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    (
        "cispo", "cispo", "group", "All tokens keep a gradient, with a clipped weight.",
        "2506.13585", {"beta": 0.0, "epsilon_high": 5.0},
    ),
    ("rloo", "rloo", "leave_one_out", "REINFORCE, the group's others as baseline.", "2402.14740", {"beta": 0.05}),
    (
        "reinforce++", "clipped", "batch", "REINFORCE with rewards less KL, normalised over the batch.",
        "2501.03262", {"beta": 0.01},
    ),
    ("ppo", "clipped", "gae", "PPO: a critic's values are the baseline of every token.", "1707.06347", {"beta": 0.05}),
):  # fmt: skip
    register_loss(
        _key,
        function=POLICY + _function,
        over="tokens",
        needs_reference=True,
        reads=POLICY_READS.get(_key, CLIPPING),
        defaults=_options,
        advantage=_advantage,
        kl_in_reward=_key in ("rloo", "reinforce++", "ppo"),
        description=_description,
        source=f"https://arxiv.org/abs/{_paper}",
    )

ADVANTAGES = "llmtune.losses.advantages:"

register_advantage(
    "group",
    function=ADVANTAGES + "group",
    description="Reward less the group's mean, over its standard deviation.",
    source="https://arxiv.org/abs/2402.03300",
)
register_advantage(
    "group_mean",
    function=ADVANTAGES + "group_mean",
    description="Reward less the group's mean.",
    source="https://arxiv.org/abs/2503.20783",
)
register_advantage(
    "group_batch",
    function=ADVANTAGES + "group_batch",
    description="Reward less the group's mean, over the standard deviation of all rewards.",
    source="https://arxiv.org/abs/2508.08221",
)
register_advantage(
    "leave_one_out",
    function=ADVANTAGES + "leave_one_out",
    description="Reward less the mean of the group's others.",
    source="https://arxiv.org/abs/2402.14740",
)
register_advantage(
    "batch",
    function=ADVANTAGES + "batch",
    relative=False,
    description="What is left of reward and KL from each token on, normalised over all tokens.",
    source="https://arxiv.org/abs/2501.03262",
)
register_advantage(
    "gae",
    function=ADVANTAGES + "gae",
    relative=False,
    needs_values=True,
    description="Generalised advantage estimation with a critic, whitened.",
    source="https://arxiv.org/abs/1506.02438",
)
